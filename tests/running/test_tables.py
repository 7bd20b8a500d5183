"""Raw tables of every form: the reader of a host gives back the numbers that verification compares with."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from coreai_recipes.decoder.model import PER_LAYER_TABLE
from coreai_recipes.errors import BundleError, RecipeError
from coreai_recipes.evaluate.errors import EvaluationError
from coreai_recipes.export.streaming import write_table
from coreai_recipes.manifest.reading import typed
from coreai_recipes.manifest.schema import Manifest
from coreai_recipes.planning.contract import hold_manifest, tables_of
from coreai_recipes.recipe import load_recipe
from coreai_recipes.running.tables import Table, Tables
from coreai_recipes.storage.compression import Compression
from coreai_recipes.storage.matching import hold_storage_rules
from coreai_recipes.storage.rows import describe_rows
from coreai_recipes.storage.shorthand import with_bits
from coreai_recipes.verification.packaged import packaged_decoder

TABLE = "per_layer_table.bin"
SHAPE = (37, 24)


def with_rule(said: str, *others: str) -> Any:
    return load_recipe("gemma4-tiny", [f"compress.rules=[{{match: per_layer_table, {said}}}]", *others])


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("kind: int8", "int8 per channel"),
        ("kind: int8, block: 8", "int8 for blocks of 8"),
        ("kind: int4, block: 8", "int4 for blocks of 8"),
        ("kind: int4", "int4 per channel"),
        ("kind: float16", "float16"),
        ("kind: int4, block: 12, symmetric: false", "int4 for blocks of 12"),
    ],
)
def test_a_host_reads_the_numbers_of_the_package(said: str, shown: str, tmp_path: Path) -> None:
    storage = Compression.of(with_rule(said)).storage(PER_LAYER_TABLE, SHAPE)
    assert str(storage) == shown
    weight = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    weight[3], weight[5, 2] = 0.0, -65504.0
    *_, _ = write_table(tmp_path / TABLE, "t", storage.bytes(SHAPE), storage.encode([weight], SHAPE, "t"))
    described = describe_rows(storage, SHAPE)
    table = Table(tmp_path / TABLE, 24, described["dtype"], described.get("scales", {}).get("block"))
    assert len(table) == 37
    ids = torch.tensor([[36, 0, 3, 5, 5]])
    found = table.rows(ids)
    assert found.dtype == torch.float16
    assert torch.equal(found[0].float(), storage.as_stored(weight, "t")[ids[0]])
    # by what docs/bundle.md says, and nothing of ours
    raw = (tmp_path / TABLE).read_bytes()
    row = np.frombuffer(raw, np.uint8, described["row_bytes"], 36 * described["row_bytes"])
    if "scales" in described:
        of_row = 24 // described["scales"]["block"]
        scales = np.frombuffer(raw, np.float16, of_row, described["scales"]["offset"] + 36 * 2 * of_row)
        halves = [half for byte in row for half in (byte & 15, byte >> 4)] if described["dtype"] == "int4" else row
        size = 16 if described["dtype"] == "int4" else 256
        signed = [int(half) - size if half >= size // 2 else int(half) for half in halves]
        expected = [np.float16(n * np.float32(scales[c * of_row // 24])) for c, n in enumerate(signed)]
        assert found[0, 0].tolist() == [float(value) for value in expected]


def test_a_bundle_is_believed_and_compared_with_the_rows_beside_it(gemma4_tiny_bundle: Path, tmp_path: Path) -> None:
    recipe = with_rule("kind: int8, block: 32")
    (wanted,) = tables_of(recipe).values()
    assert wanted == {
        "file": TABLE,
        "role": "table",
        "dtype": "int8",
        "shape": [2048, 256],
        "row_bytes": 256,
        "scales": {"dtype": "float16", "block": 32, "offset": 2048 * 256},
        "input": "per_layer",
    }
    manifest = json.loads((gemma4_tiny_bundle / "manifest.json").read_text())
    place = next(index for index, entry in enumerate(manifest["packages"]) if entry["role"] == "table")
    before = manifest["packages"][place]
    manifest["packages"][place] = wanted
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / "model.mlpackage").symlink_to(gemma4_tiny_bundle / "model.mlpackage")
    storage = Compression.of(recipe).storage(PER_LAYER_TABLE, (2048, 256))
    rows = torch.from_numpy(np.fromfile(gemma4_tiny_bundle / TABLE, np.float16).reshape(2048, 256).copy())
    values = storage.encode([rows], (2048, 256), "t")
    *_, _ = write_table(folder / TABLE, "t", storage.bytes((2048, 256)), values)
    read = typed(Manifest, manifest, "here")
    hold_manifest(read, recipe, folder)
    with pytest.raises(BundleError, match=r"of int8 in blocks of 32 for per_layer and must have .* for per_layer"):
        hold_manifest(read, load_recipe("gemma4-tiny"), folder)
    given = Tables.of_manifest(folder, read).with_rows("decode", {"input_ids": torch.tensor([[7]])})["per_layer"]
    assert torch.equal(given[0, 0].float(), storage.as_stored(rows[7:8], "t")[0])
    beside = packaged_decoder(recipe, folder / "model.mlpackage")[PER_LAYER_TABLE]
    assert torch.equal(beside.read_rows([7])[0], given[0, 0].float())
    assert (given[0, 0] - rows[7]).abs().max() <= rows[7].abs().max() / 200
    for changed, said in (
        ({"row_bytes": 128}, "row_bytes: 128 is not what 256 columns of int8 take"),
        ({"scales": None}, "scales: missing, of rows of int8"),
        ({"scales": {**wanted["scales"], "block": 33}}, "scales.block: 33 does not divide 256 columns"),
        ({"scales": {**wanted["scales"], "offset": 9}}, "scales.offset: 9 is not 2048 x 256"),
        ({**before, "scales": wanted["scales"]}, "scales: there, of rows of float16"),
    ):
        manifest["packages"][place] = {**wanted, **changed}
        with pytest.raises(BundleError, match=f"packages.{place}.{said}"):
            typed(Manifest, manifest, "here")


def test_scales_may_lie_behind_more_rows_than_32_bits_count(gemma4_tiny_bundle: Path) -> None:
    """Those of Gemma 4 E2B: 2.3 GB of int8 come before them."""
    (wanted,) = tables_of(with_bits(load_recipe("gemma4"), 4)).values()
    manifest = json.loads((gemma4_tiny_bundle / "manifest.json").read_text())
    place = next(index for index, entry in enumerate(manifest["packages"]) if entry["role"] == "table")
    manifest["packages"][place] = wanted
    assert wanted["scales"]["offset"] == 262144 * 35 * 256 > 1 << 31
    typed(Manifest, manifest, "here")


def test_a_file_of_other_rows_is_refused(tmp_path: Path) -> None:
    (tmp_path / TABLE).write_bytes(bytes(28 * 3 + 1))
    with pytest.raises(EvaluationError, match="85 bytes are not whole rows of 28"):
        Table(tmp_path / TABLE, 24, "int8", 12)


def test_palettes_are_not_for_a_host_and_a_pattern_for_all_leaves_it_alone() -> None:
    every = load_recipe("gemma4-tiny", ['compress.rules=[{match: "*", kind: palettize, bits: 4}]'])
    hold_storage_rules(every)
    choice = Compression.of(every).choose(PER_LAYER_TABLE, (2048, 256))
    assert str(choice.storage) == "float16"
    assert choice.why == "a host reads rows of float16, int8 or int4, without offsets"
    with pytest.raises(RecipeError) as refused:
        hold_storage_rules(with_rule("kind: palettize, bits: 4"))
    assert str(refused.value) == (
        "compress.rules.0.match: `per_layer_table` matches `per_layer_table` alone: "
        "a host reads rows of float16, int8 or int4, without offsets\n  write `kind: int8` or `kind: int4`"
    )
    odd = Compression.of(with_rule("kind: int4")).choose(PER_LAYER_TABLE, (9, 7))
    assert (str(odd.storage), odd.why) == ("float16", "rows of 7 numbers of 4 bits do not end at a byte")
