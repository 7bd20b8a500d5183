"""The table of docs/audit.md: what each island of float32 buys the families whose new recipes name it.

    python tests/island_table.py           measure every family that has an island, and write the table
    python tests/island_table.py mamba2    measure this one anew, and keep the rows of the others

Refuses to write a table in which one buys less than LEAST_DB, with the engine's habits, of any model.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from coreai_recipes.recipe.importing.family import family_names, load_family

PAGE = Path(__file__).parents[1] / "docs/audit.md"
BEGIN, END = "<!-- islands: written by `python tests/island_table.py` -->\n", "<!-- end of islands -->\n"
SEEDS = (0, 3, 5, 7, 11)
LEAST_DB = 3.0
COLUMNS = ("model_type", "island", "seed", "rounded: without, with", "floor", "engine: without, with", "buys")


@dataclass(frozen=True)
class Row:
    name: str
    island: str
    seed: int
    rounded: tuple[float, float]
    floor: float
    engine: tuple[float, float]

    @property
    def gain(self) -> float:
        return self.engine[1] - self.engine[0]

    @property
    def cells(self) -> tuple[str, ...]:
        rounded, engine = (", ".join(f"{figure:.1f}" for figure in pair) for pair in (self.rounded, self.engine))
        return self.name, self.island, str(self.seed), rounded, f"{self.floor:.1f}", engine, f"{self.gain:.1f} dB"


def islands() -> dict[str, list[str]]:
    """The islands of each family that has any."""
    found = {name: load_family(name).export.get("float32", []) for name in family_names()}
    return {name: names for name, names in found.items() if names}


def measure(name: str, island: str, seed: int) -> Row:
    """Both packages of the family's unusual model, without this island and with all of the family's."""
    from family_configs import save_tokenizer
    from test_families import PACKAGED, SEEDS, read_recipe, save_model

    SEEDS[name] = seed
    with TemporaryDirectory() as folder:
        checkpoint = save_model(PACKAGED[name], Path(folder) / "checkpoint")
        save_tokenizer(checkpoint.path)
        recipe = read_recipe(checkpoint.config)
        others = [each for each in recipe.export.float32 if each != island]
        without = recipe.model_copy(update={"export": recipe.export.model_copy(update={"float32": others})})
        before = _stages(without, checkpoint, Path(folder) / "without")
        after = _stages(recipe, checkpoint, Path(folder) / "with")

    def psnr(stage: str) -> tuple[float, float]:
        return before[stage]["psnr_db"], after[stage]["psnr_db"]

    floor = after["package_float16"]["floor_db"]
    return Row(name, island, seed, psnr("package_float16"), floor, psnr("package_engine"))


def _stages(recipe: Any, checkpoint: Any, folder: Path) -> dict[str, Any]:
    from coreai_recipes import build
    from coreai_recipes.bundle.building import VerificationError

    try:
        report = build(recipe, checkpoint, folder).report
    except VerificationError as failed:  # without its island a model may be below its floor
        report = failed.report.to_json()
    return {stage["name"]: stage for stage in report["stages"]}


def written() -> list[tuple[str, ...]]:
    """The cells of the page's table, row by row."""
    lines = PAGE.read_text().partition(BEGIN)[2].partition(END)[0].splitlines()[2:]
    return [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in lines]


def table(rows: list[tuple[str, ...]]) -> str:
    """The table in Markdown, between its marks."""
    marks = ["---" if index < 2 else "---:" for index in range(len(COLUMNS))]
    lines = [f"| {' | '.join(cells)} |" for cells in (COLUMNS, marks, *rows)]
    return BEGIN + "\n".join(lines) + "\n" + END


def main(wanted: Sequence[str]) -> None:
    found = {name: names for name, names in islands().items() if not wanted or name in wanted}
    rows = [measure(name, island, seed) for name, names in found.items() for island in names for seed in SEEDS]
    poor = [f"{row.name}, {row.island}, seed {row.seed}: {row.gain:.1f} dB" for row in rows if row.gain < LEAST_DB]
    if poor:
        sys.exit(f"less than {LEAST_DB:g} dB: {'; '.join(poor)}")
    text = PAGE.read_text()
    before, rest = text.split(BEGIN)
    cells = [row.cells for row in rows] + [kept for kept in written() if kept[0] in islands() and kept[0] not in found]
    PAGE.write_text(before + table(sorted(cells, key=lambda row: (*row[:2], int(row[2])))) + rest.partition(END)[2])


if __name__ == "__main__":
    main(sys.argv[1:])
