"""Palettes, scales and norms tuned end to end: their gradients, what is won, and packages that hold them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from coreai_recipes.bundle.building import build
from coreai_recipes.calibration.calibrating import calibrate
from coreai_recipes.calibration.passing import folded_decoder
from coreai_recipes.calibration.text import read_windows
from coreai_recipes.calibration.tuning import STEP, TunedPalette, TunedScales, rate_at
from coreai_recipes.checkpoint.base import Checkpoint
from coreai_recipes.decoder.filling import bind_weights
from coreai_recipes.decoder.model import fill
from coreai_recipes.errors import RecipeError, UserError
from coreai_recipes.export.cache import FragmentCache
from coreai_recipes.recipe import Recipe, load_recipe
from coreai_recipes.recipe.schema import Calibration
from coreai_recipes.storage.fitted import Fitted
from coreai_recipes.storage.integers import Integers
from coreai_recipes.storage.palette import Palette
from tests.calibration.test_calibrating import CHECKPOINTS, package_of, run

STEPS = 6
SAID = [
    "compress.default={kind: palettize, bits: 2}",
    "compress.rules=[{match: layers.1.mlp.down, kind: int4, block: 16}]",
    "export.residual_scale=0.5",
]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return load_recipe("tiny-llama", [*SAID, f"compress.tune={STEPS}"])


@pytest.fixture(scope="module")
def windows(recipe: Recipe, checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> list[list[int]]:
    folder = tmp_path_factory.mktemp("tokenizer")
    checkpoint.write_tokenizer(folder)
    return read_windows(Calibration(tokens=2048), folder, recipe.export.context)[0]


@pytest.fixture(scope="module")
def tuned(
    recipe: Recipe, checkpoint: Checkpoint, windows: list[list[int]], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Fitted]:
    return calibrate(recipe, checkpoint, windows, tmp_path_factory.mktemp("tuned"))


def decoded(fitted: Fitted) -> Tensor:
    return fitted.storage.decode(fitted.read(), fitted.shape)


def loss(recipe: Recipe, checkpoint: Checkpoint, fitted: dict[str, Fitted], windows: list[list[int]]) -> float:
    """Mean KL divergence from the checkpoint's own model."""
    ours, theirs = folded_decoder(recipe), folded_decoder(recipe)
    weights = bind_weights(theirs, checkpoint)
    fill(theirs, lambda name: weights[name].read())

    def read(name: str) -> Tensor:
        own = weights[name].read()
        return decoded(fitted[name]).flatten()[: own.numel()] if name in fitted else own

    fill(ours, read)
    with torch.no_grad():
        pairs = [tuple(d(torch.tensor([window]))[0].log_softmax(-1) for d in (theirs, ours)) for window in windows]
    return float(torch.cat([(one.exp() * (one - other)).sum(-1) for one, other in pairs]).mean())


def test_entries_gather_the_gradients_of_all_weights_that_they_are(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(1)
    weights = torch.randn(32, 24, generator=generator)
    gradient = torch.randn(20, 24, 1, 1, generator=generator)  # twelve rows are padding
    for storage, kind in ((Palette(2, 16), TunedPalette), (Integers(4, 8, False), TunedScales)):
        fitted = Fitted.write(tmp_path, "w", (32, 24), storage, storage.encode([weights], (32, 24), "w"))
        found = kind(fitted, storage, torch.Size((20, 24, 1, 1)))  # type: ignore[arg-type]
        assert torch.equal(found.values[..., 0, 0], decoded(fitted)[:20])
        for at in ((0, 1), (1, 2)):
            before = found.values.clone()
            found.change[at] += 0.25
            found.write()
            slope = ((found.values - before) * gradient).sum() / 0.25
            assert abs(float(slope - found.gather(gradient)[at])) < 2e-2 * float(slope.abs()) + 2e-3


@pytest.mark.parametrize("storage", [Integers(8), Integers(4, 8, False), Palette(2, 16)], ids=str)
def test_what_grows_with_an_outlier_stays_a_number_of_float16(storage: Integers | Palette, tmp_path: Path) -> None:
    weights = torch.randn(16, 24, generator=torch.Generator().manual_seed(1))
    weights[3, 5] = 60_000
    fitted = Fitted.write(tmp_path, "w", (16, 24), storage, storage.encode([weights], (16, 24), "w"))
    kind = TunedPalette if isinstance(storage, Palette) else TunedScales
    found = kind(fitted, storage, torch.Size((16, 24)))  # type: ignore[arg-type]
    found.change += 0.25
    found.write()
    assert 60_000 < found.values[3, 5] <= 65_504
    assert found.values.isfinite().all()


def test_tuned_parts_lose_less_on_the_text_and_norms_are_among_them(
    recipe: Recipe, checkpoint: Checkpoint, windows: list[list[int]], tuned: dict[str, Fitted], tmp_path: Path
) -> None:
    without = load_recipe("tiny-llama", SAID)
    fitted = calibrate(without, checkpoint, windows, tmp_path)
    assert tuned.keys() - fitted.keys() == {
        *(f"layers.{i}.{part}_norm.weight" for i in range(4) for part in ("attention", "mlp")),
        "norm.weight",
    }
    # the numbers that indices stand for have changed, indices have not
    for name, one in fitted.items():
        assert one.read()[0].tobytes() == tuned[name].read()[0].tobytes(), name
    before, after = (loss(recipe, checkpoint, found, windows) for found in (fitted, tuned))
    assert after < 0.985 * before


def test_tuning_gives_the_same_bytes_for_any_number_of_threads(
    recipe: Recipe, checkpoint: Checkpoint, windows: list[list[int]], tuned: dict[str, Fitted], tmp_path: Path
) -> None:
    torch.set_num_threads(3)
    done: list[tuple[int, int]] = []
    try:
        again = calibrate(
            recipe, checkpoint, windows, tmp_path, lambda step, n, of: done.append((n, of)) if step == STEP else None
        )
    finally:
        torch.set_num_threads(1)
    assert done == [(n, STEPS) for n in range(1, STEPS + 1)]
    for name, one in tuned.items():
        assert [path.read_bytes() for path in one.files] == [path.read_bytes() for path in again[name].files], name


def test_a_tuned_package_is_verified_with_the_norms_that_lie_in_it(
    recipe: Recipe, checkpoint: Checkpoint, tuned: dict[str, Fitted], fragments: Path, tmp_path: Path
) -> None:
    package = package_of(recipe, checkpoint, FragmentCache(fragments), tmp_path, tuned)
    of_package, compressed = run(recipe, checkpoint, package, "package", "compressed")
    assert of_package.passed, of_package.detail
    assert compressed.passed
    norms = {row["name"]: row["psnr_db"] for row in compressed.detail["by_tensor"] if row["name"].endswith("norm")}
    assert len(norms) == 9
    assert all(psnr < 70 for psnr in norms.values())  # the checkpoint's, rounded, are nearer


def test_the_rate_rises_and_falls() -> None:
    rates = [rate_at(step, 60) for step in range(60)]
    assert max(rates) == pytest.approx(rates[4], rel=0.01)
    assert np.all(np.diff(rates[:5]) > 0)
    assert np.all(np.diff(rates[4:]) < 0)
    assert rates[-1] == pytest.approx(0.05, abs=0.01)


def test_tuning_without_a_text_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"`calibration: null` leaves no text to tune on"):
        load_recipe("tiny-llama", [*SAID, "compress.tune=5", "compress.calibration=null"])
    with pytest.raises(RecipeError, match=r"`default: source` keeps the checkpoint's own numbers"):
        load_recipe("tiny-llama", ["compress.default=source", "compress.tune=5"])


def test_a_build_with_nothing_to_tune_says_so(tmp_path: Path) -> None:
    recipe = load_recipe("tiny-llama", ["compress.default={kind: int8}", "compress.tune=5"])
    bundle = build(recipe, CHECKPOINTS / "tiny-llama", tmp_path, verified=False)
    assert "compress.tune: no matrix is fitted to a text, so nothing is tuned" in bundle.notes


def test_a_model_that_is_too_large_to_be_tuned_is_said_to_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coreai_recipes.verification.memory.free_bytes", lambda: 1e6)
    recipe = load_recipe("tiny-llama", [*SAID, "compress.tune=5"])
    with pytest.raises(
        UserError, match=r"^compress.tune: needs 0.0 GB of free memory, three times the float32 model's"
    ):
        build(recipe, CHECKPOINTS / "tiny-llama", tmp_path, verified=False)
