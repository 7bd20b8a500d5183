"""Packages whose weights are compressed: `package` holds them to the weights as stored, `compressed` says the loss."""

import shutil
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from verify_cases import Export, Saved

from coreai_recipes.evaluate.package_reader import Package
from coreai_recipes.recipe import Recipe, load_recipe
from coreai_recipes.report.verdict import print_report
from coreai_recipes.storage.layout import FILE as WEIGHTS
from coreai_recipes.storage.palette import Palette
from coreai_recipes.verification import StageResult, run_stages
from coreai_recipes.verification.figures import divergence, psnr

STAGES = ["package", "package_float16", "compressed"]


@pytest.fixture(scope="module")
def int8() -> Recipe:
    return load_recipe("tiny-llama", ["compress.default.kind=int8"])


@pytest.fixture(scope="module")
def int8_package(int8: Recipe, tiny_llama: Saved, export: Export) -> Path:
    return export(int8, tiny_llama[1])


def run(recipe: Recipe, saved: Saved, package: Path, *stages: str) -> list[StageResult]:
    return list(run_stages(recipe, saved[1], package, stages=stages).stages)


def blobs_of(data: bytes) -> Iterator[tuple[int, int]]:
    """The data type and the size of each blob of a weight.bin, whose records follow one another."""
    (count,), position = struct.unpack_from("<I", data), 64
    for _ in range(count):
        _, kind, size, start, _ = struct.unpack_from("<IIQQQ", data, position)
        yield kind, size
        position = -(-(start + size) // 64) * 64


def test_an_int8_package_holds_just_the_weights_whose_loss_is_stated(
    int8: Recipe, tiny_llama: Saved, int8_package: Path, tiny_package: Path
) -> None:
    package, halves, compressed = run(int8, tiny_llama, int8_package, *STAGES)
    assert (package.passed, halves.passed, compressed.passed) == (True, True, True), [halves.to_json()]
    assert package.psnr_db is not None
    assert package.psnr_db > 130
    # against the checkpoint's own weights float16 would lose 20 dB that are not its own
    assert halves.detail["compared_with"] == "transformers in float32 with the weights as stored"
    assert halves.detail["rounded"]["top_1"] == 1
    detail = compressed.detail
    assert 1e-5 < detail["kl"]["mean"] < 2e-3 < detail["kl"]["largest"] * 10
    assert detail["top_1"] > 0.95
    assert detail["perplexity"]["compressed"] == pytest.approx(detail["perplexity"]["transformers"], rel=0.01)
    assert compressed.floor_db is None
    # what is stated is what lies there
    stored = detail["storage"]
    assert stored["forms"] == "int8 per channel and float16"
    data = (int8_package / WEIGHTS).read_bytes()
    assert stored["bytes"] == sum(size for _, size in blobs_of(data))
    assert stored["bits_per_weight"] == round(8 * stored["bytes"] / stored["weights"], 4)
    assert len(data) < 0.55 * (tiny_package / WEIGHTS).stat().st_size


def test_a_package_of_palettes_holds_just_the_weights_whose_loss_is_stated(
    tiny_llama: Saved, export: Export, capsys: pytest.CaptureFixture[str]
) -> None:
    """12 divides the rows of a layer's matrices, whose heads have 32; those of the table are stored in groups of 8.
    Layers of one kind are stored in several ways."""
    rules = (
        '[{match: layers.1.mlp.down, kind: int8}, {match: "layers.2.*", bits: 2}, {match: layers.0.mlp.up, bits: 6}]'
    )
    palettes = "compress.default={kind: palettize, bits: 3, group: 12}"
    recipe = load_recipe("tiny-llama", [palettes, f"compress.rules={rules}", "compress.budget.kl=0.1"])
    saved = export(recipe, tiny_llama[1])
    package, compressed = run(recipe, tiny_llama, saved, "package", "compressed")
    assert package.passed, package.to_json()
    assert compressed.detail["kl"]["mean"] > 0.1
    assert compressed.passed is False
    (over,) = compressed.detail["over_budget"]
    assert over.startswith(f"compress.budget.kl: {compressed.detail['kl']['mean']:.4g} nats, but only 0.1 are allowed")
    assert 3.1 < compressed.detail["storage"]["bits_per_weight"] < 3.5
    rows = {row["name"]: row for row in compressed.detail["by_tensor"]}
    # of each its part of the whole's loss, those of 2 bits most
    assert sum(row["kl"] or 0 for row in rows.values()) == pytest.approx(compressed.detail["predicted_kl"], rel=1e-3)
    assert 0.4 < compressed.detail["predicted_kl"] / compressed.detail["kl"]["mean"] < 2
    assert rows["layers.2.mlp.up"]["kl"] > 2 * rows["layers.3.mlp.up"]["kl"] > 4 * rows["layers.0.mlp.up"]["kl"]
    assert rows["norm"]["kl"] is None
    storage = compressed.detail["storage"]
    assert sum(row["bytes"] for row in rows.values()) == storage["bytes"]
    assert storage["file_bytes"] == (saved / WEIGHTS).stat().st_size
    gaps = 1 - storage["bytes"] / storage["file_bytes"]
    assert sum(row["share"] for row in rows.values()) == pytest.approx(1 - gaps, abs=1e-4)
    assert rows["layers.2.mlp.down"]["rule"] == "layers.2.*"
    assert rows["layers.2.attention_norm"]["why"] == "only matrices are compressed"
    assert rows["layers.1.attention_norm"].keys() & {"why", "rule"} == set()
    assert rows["embedding"]["why"] == "groups of 12 do not divide 512 channels"
    assert "why" not in rows["layers.3.attention.o"]
    assert rows["layers.1.mlp.down"]["form"] == "int8 per channel"
    assert rows["embedding"]["form"] == "palettes of 3 bits for 8 channels"
    levels = ("layers.2.mlp.up", "layers.3.mlp.up", "layers.0.mlp.up", "layers.1.mlp.down")  # of 2, 3, 6 and 8 bits
    decibels = [rows[name]["psnr_db"] for name in levels]
    assert 15 < decibels[0] < decibels[1] - 4 < decibels[2] - 14 < decibels[3]
    print_report({"stages": [package.to_json(), compressed.to_json()]})
    printed = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    queries = [rows[f"layers.{layer}.attention.q"] for layer in (0, 1, 3)]
    lowest, costs = min(row["psnr_db"] for row in queries), sum(row["kl"] for row in queries)
    assert any(
        line.startswith("layers.*.attention.q 3 ") and f" {lowest:.1f} {costs:.2g} palettes of 3 bits" in line
        for line in printed
    )
    assert any(
        line.startswith("all others ") and line.endswith("float16; only matrices are compressed") for line in printed
    )
    # of one tensor told apart from how it is read: the checkpoint's table, and the same in groups of eight
    table = tiny_llama[1].read("model.embed_tokens.weight").float()
    given_back = torch.cat([Palette(3, 8).as_stored(table[row : row + 8], "") for row in range(0, len(table), 8)])
    assert rows["embedding"]["psnr_db"] == pytest.approx(psnr(table, given_back), abs=0.01)


def test_a_scale_that_is_off_is_found_in_its_layer(
    int8: Recipe, tiny_llama: Saved, int8_package: Path, tmp_path: Path
) -> None:
    package = Path(shutil.copytree(int8_package, tmp_path / "model.mlpackage"))
    block = Package(package).block("decode")
    (operation,) = [o for o in block.operations if o.outputs and o.outputs[0].name == "layers_2_mlp_up_weight"]
    offset = operation.inputs["scale"].arguments[0].value.blobFileValue.offset
    data = bytearray((package / WEIGHTS).read_bytes())
    scales = np.frombuffer(data, np.float16, 8, offset + 64)
    scales *= 1.01
    (package / WEIGHTS).write_bytes(data)
    (result,) = run(int8, tiny_llama, package, "package")
    assert result.passed is False
    assert result.detail["first_below"]["tensor"] == "layers.2.output"


def test_a_recipe_that_does_not_compress_skips_the_stage(tiny_llama: Saved, tiny_package: Path) -> None:
    (result,) = run(*tiny_llama[:1], tiny_llama, tiny_package, "compressed")
    assert result.skipped == "no compression in this recipe"


def test_divergence_is_zero_for_equal_logits_and_torchs_own_for_others() -> None:
    generator = torch.Generator().manual_seed(0)
    one, other = (torch.randn(5, 11, generator=generator) for _ in range(2))
    assert divergence(one, one + 3).abs().max() < 1e-6  # a constant changes no distribution
    theirs = torch.nn.functional.kl_div(other.log_softmax(-1), one.softmax(-1), reduction="none").sum(-1)
    assert torch.allclose(divergence(one, other).float(), theirs, atol=1e-6)
