"""`recipe compress`: a plain recipe within a budget, that `recipe build` takes."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from coreai_recipes.decoder.stacks import build_stacks
from coreai_recipes.search.command import read_budget
from coreai_recipes.search.searching import Budget
from coreai_recipes.storage.matching import load_held
from coreai_recipes.storage.parameters import stored_parameters

Run = Callable[..., tuple[int, str, str]]
CHECKPOINT = Path(__file__).parents[1] / "checkpoints/tiny-llama"


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("The moon turns around the earth, and two children looked at it for a while.\n" * 60)
    return path


def test_a_budget_becomes_rules_that_keep_it_and_lose_least(run: Run, text: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text(f"extends: tiny-llama\ncompress: {{calibration: {{text: [{text.name}], tokens: 1024}}}}\n")
    arguments = ("compress", mine, "--checkpoint", CHECKPOINT, "--budget")
    status, out, err = run(*arguments, "4.3", "--json", "-o", tmp_path / "found.yaml")
    assert (status, err) == (0, "")
    found, text = json.loads(out), (tmp_path / "found.yaml").read_text()
    assert found["recipe"] == text
    by_loss, uniform = found["tried"]
    assert by_loss["measured_kl"] < uniform["measured_kl"]
    assert 0.5 < by_loss["predicted_kl"] / by_loss["measured_kl"] < 1.5
    assert found["taken"] == "by predicted loss"
    recipe = load_held(str(tmp_path / "found.yaml"))
    assert stored_parameters(build_stacks(recipe)).bits_per_weight <= 4.3
    assert recipe.compress is not None
    assert recipe.compress.calibration is not None
    assert recipe.compress.calibration.tokens == 1024
    # the same again
    status, out, err = run(*arguments, "4.3")
    assert (status, out) == (0, text)
    assert err.startswith("by predicted loss: 4.")
    # what cannot be
    status, _, err = run(*arguments, "1.5")
    assert (status, err) == (2, "--budget 1.5: the lowest is 2.068 bits per weight\n")
    status, _, err = run(*arguments, "4.3", "-o", tmp_path / "none/found.yaml")
    assert (status, err) == (2, f"{tmp_path}/none/found.yaml: there is no folder {tmp_path}/none: create it first\n")
    status, _, err = run(*arguments, "4.3", "-o", tmp_path / "found.yaml")
    assert (status, err) == (2, f"{tmp_path}/found.yaml: already exists; choose another name with --out\n")


@pytest.mark.parametrize("budget", ["foo", "0", "-4", "kl=", "kl=nan", "inf"])
def test_a_budget_that_is_none_is_said(run: Run, budget: str) -> None:
    status, _, err = run("compress", "tiny-llama", f"--budget={budget}")
    assert status == 2
    assert err == f"--budget {budget}: must be bits per weight, as in 4.2, or nats, as in kl=0.1\n"


def test_a_budget_is_bits_or_a_loss() -> None:
    assert read_budget("4.25") == Budget(bits=4.25)
    assert read_budget("kl=0.1") == Budget(kl=0.1)


def test_a_recipe_in_its_checkpoints_forms_is_searched_like_any_other(run: Run) -> None:
    """It was refused for forms that the search does not use."""
    tiny = Path(__file__).parents[1] / "checkpoints/tiny-llama"
    chosen = ("compress", "tiny-llama", "--set", "compress.default=source", "--checkpoint", tiny, "--budget", "0.5")
    assert run(*chosen) == (2, "", "--budget 0.5: the lowest is 2.068 bits per weight\n")
