"""The table of a zoo as Parquet, in its store; DuckDB, pandas and Polars open it."""

import io
from collections.abc import Sequence

from coreai_recipes.errors import UserError
from coreai_recipes.zoo.rows import COLUMNS, Row
from coreai_recipes.zoo.store import Store

TABLE = "table.parquet"


def write_table(store: Store, rows: Sequence[Row]) -> None:
    """Put the table in place of the one that was there."""
    store.put(TABLE, table_bytes(rows))


def table_bytes(rows: Sequence[Row]) -> bytes:
    """The same rows give the same bytes."""
    import pyarrow
    from pyarrow import parquet

    types = {
        "string": pyarrow.string(),
        "int64": pyarrow.int64(),
        "float64": pyarrow.float64(),
        "bool": pyarrow.bool_(),
    }
    schema = pyarrow.schema([(name, types[of]) for name, of in COLUMNS.items()])
    buffer = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(list(rows), schema), buffer, compression="zstd")
    return buffer.getvalue()


def read_table(store: Store) -> list[Row]:
    """The rows of the table. Raises UserError where there is none, or none of a zoo."""
    data = store.get(TABLE)
    if data is None:
        raise UserError(f"store {store.address}: has no table yet: `recipe zoo ZOO` writes it")
    import pyarrow
    from pyarrow import parquet

    try:
        found: list[Row] = parquet.read_table(io.BytesIO(data)).to_pylist()
    except (pyarrow.ArrowInvalid, OSError):
        raise UserError(f"store {store.address}: {TABLE} is no table of Parquet: run the zoo again") from None
    if found and found[0].keys() != COLUMNS.keys():
        raise UserError(f"store {store.address}: {TABLE} is of another version: run the zoo again")
    return found
