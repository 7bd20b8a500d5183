"""`compress.budget`: a build that takes or loses more fails, with the figure and what to try."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from coreai_recipes.decoder.model import build_decoder
from coreai_recipes.errors import RecipeError
from coreai_recipes.recipe import load_recipe
from coreai_recipes.storage.budget import bits_over, kl_over
from coreai_recipes.storage.parameters import stored_parameters

Run = Callable[..., tuple[int, str, str]]
PALETTES = "compress.default={kind: palettize, bits: 4}"
SAID = (
    "compress.budget.bits_per_weight: 4.466 bits a weight, and 4.4 are allowed\n"
    "  of the bytes take embedding 29% at 6.11 bits, layers.*.mlp.gate 18% at 4.03 bits, layers.*.mlp.up 18% at 4.03 "
    "bits: use fewer bits there, by a rule of `compress`, or fewer for all\n"
    "  `recipe compress RECIPE --budget BITS` finds the rules that lose least; it goes down to 2 bits\n"
)


def test_a_plan_over_its_bits_fails_with_what_takes_most(run: Run) -> None:
    arguments = ("smollm2-135m", "--set", "compress.budget={bits_per_weight: 4.4}", "--bits", "4")
    status, printed, error = run("plan", *arguments)
    assert (status, error) == (1, SAID)
    assert "weight.bin: 134,515,008 weights" in printed
    status, printed, _ = run("plan", *arguments, "--json")
    assert (status, json.loads(printed)["over_budget"]) == (1, SAID.strip())
    status, printed, error = run("plan", *arguments, "--set", "compress.budget.bits_per_weight=4.5")
    assert (status, error) == (0, "")


def test_a_build_over_its_bits_writes_nothing(run: Run, tmp_path: Path) -> None:
    checkpoint = Path(__file__).parents[1] / "checkpoints/tiny-llama"
    budget = ("--set", PALETTES, "--set", "compress.budget.bits_per_weight=3")
    status, printed, error = run("build", "tiny-llama", "--checkpoint", checkpoint, "-o", tmp_path, *budget)
    assert (status, printed) == (1, "")
    assert error.startswith("compress.budget.bits_per_weight: 4.")
    assert error.endswith("\nno bundle was written\n")
    assert not list(tmp_path.iterdir())


def test_a_budget_that_no_rules_meet_names_the_lowest_that_some_do() -> None:
    recipe = load_recipe("tiny-llama", [PALETTES, "compress.budget.bits_per_weight=1"])
    said = bits_over(recipe, stored_parameters([build_decoder(recipe)])) or ""
    lowest = float(said.rpartition("the lowest is ")[2].partition(",")[0])
    assert said.endswith("palettes of 1 bit for all")
    reached = load_recipe("tiny-llama", ["compress.default={kind: palettize, bits: 1}"])
    bits = stored_parameters([build_decoder(reached)]).bits_per_weight
    assert bits <= lowest < bits + 0.002


def test_within_a_budget_nothing_is_said() -> None:
    recipe = load_recipe("tiny-llama", [PALETTES, "compress.budget={bits_per_weight: 8, kl: 0.1}"])
    assert bits_over(recipe, stored_parameters([build_decoder(recipe)])) is None
    assert kl_over(recipe, 0.1) is None
    assert (kl_over(recipe, 0.11) or "").startswith("compress.budget.kl: 0.11 nats, but only 0.1 are allowed\n")
    assert kl_over(recipe, float("nan")) is not None
    assert kl_over(load_recipe("tiny-llama", [PALETTES]), 5.0) is None


def test_a_loss_that_nothing_measures_has_no_budget() -> None:
    with pytest.raises(RecipeError, match=r"compress\.budget\.kl: without a reference, the loss cannot be measured"):
        load_recipe("tiny-llama", [PALETTES, "compress.budget.kl=0.1", "reference=null"])
