"""Several drafts in one call: each step takes the token and the hidden state of the step before it, in the package."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from families import gemma4
from family_configs import save_tokenizer
from gemma4_drafts import gemma4_draft
from torch import Tensor

from coreai_recipes import build, load_recipe, verify
from coreai_recipes.bundle.opened import Bundle
from coreai_recipes.errors import UserError
from coreai_recipes.evaluate import Program
from coreai_recipes.hosts.logits import best, choices
from coreai_recipes.planning.contract import hold_manifest
from coreai_recipes.planning.plan import make_plan
from coreai_recipes.recipe.schema import Recipe
from coreai_recipes.verification.draft_reference import all_layers_may_share

STEPS = 3
Build = Callable[[int], Bundle]


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """The bundle of a small Gemma 4 whose draft gives so many tokens a call, by a head that looks into clusters."""
    made: dict[int, Bundle] = {}

    def bundle(steps: int) -> Bundle:
        if steps not in made:
            folder = tmp_path_factory.mktemp("steps")
            pair = gemma4(
                experts=False,
                context=64,
                functions={"prefill": 16, "score": 5},
                vocab_size=128,
                vocab_size_per_layer_input=128,
            )
            recipe, draft = gemma4_draft(pair, clusters=16)
            with torch.no_grad(), all_layers_may_share():
                pair.model.save_pretrained(folder / "target")
                draft.save_pretrained(folder / "draft")
            save_tokenizer(folder / "target")
            places = folder / "target", folder / "dist"
            made[steps] = build(drafting(recipe, steps), *places, draft=folder / "draft", verified=False)
        return made[steps]

    return bundle


def drafting(recipe: Recipe, steps: int) -> Recipe:
    data = {**recipe.model_dump(), "weights": {"names": "gemma4"}}
    return Recipe.model_validate({**data, "draft": {**data["draft"], "steps": steps}})


def drafts_one_by_one(program: Program, inputs: dict[str, Tensor], state: Any, vocab: int) -> tuple[list[Any], Tensor]:
    """STEPS calls, each given what the one before it gave: tokens and their logits, and the last hidden state."""
    found: list[Any] = []
    for _ in range(STEPS):
        outputs = program.function("draft")(inputs, state)
        logits = choices(outputs, vocab)[0]
        found.append((best(logits), float(logits.max())))
        inputs = {
            **inputs,
            "input_ids": torch.tensor([[found[-1][0]]], dtype=torch.int32),
            "last_hidden": outputs["hidden"],
        }
    return found, outputs["hidden"]


@pytest.mark.parametrize("precision", ["float32", "rounded"])
def test_the_drafts_of_one_call_are_those_of_single_calls_to_the_bit(precision: Any, bundles: Build) -> None:
    at_once, single = bundles(STEPS), bundles(1)
    vocab, generator = at_once.recipe.model.vocab_size, torch.Generator().manual_seed(2)
    programs = [Program(bundle.package, precision) for bundle in (at_once, single)]
    given = programs[0].function("draft").inputs
    for end in (1, 7, 40):
        inputs = {
            "input_ids": torch.randint(vocab, (1, 1), generator=generator, dtype=torch.int32),
            "last_hidden": torch.randn(given["last_hidden"].shape, generator=generator).half().float(),
            "position": torch.tensor([end], dtype=torch.int32),
            **{name: torch.tensor([end], dtype=torch.int32) for name in given if name.startswith("seen_")},
        }
        states = [program.make_state() for program in programs]
        for name, state in states[0].items():
            state.copy_(torch.randn(state.shape, generator=generator).half().float())
            states[1][name].copy_(state)
        found = programs[0].function("draft")(inputs, states[0])
        expected, hidden = drafts_one_by_one(programs[1], inputs, states[1], vocab)
        assert list(zip(found["ids"][0].tolist(), found["values"][0].tolist(), strict=True)) == expected
        assert torch.equal(found["hidden"], hidden)


def test_the_stage_compares_each_step_and_the_rounds(bundles: Build) -> None:
    bundle = bundles(STEPS)
    folder = bundle.path.parent.parent
    report = verify(bundle, folder / "target", draft=folder / "draft", stages=["draft"])
    (stage,) = report.stages
    assert stage.passed
    assert stage.detail["equal"] == {"torch": True, "package": True}


def test_a_manifest_says_how_many_and_null_of_one(bundles: Build) -> None:
    for steps, said in ((STEPS, STEPS), (1, None)):
        bundle = bundles(steps)
        functions = bundle.manifest["packages"][-1]["functions"]
        assert {name: function["steps"] for name, function in functions.items()} == {
            **dict.fromkeys(functions),
            "draft": said,
        }
    manifest, recipe = bundles(1).described, bundles(STEPS).recipe
    with pytest.raises(UserError, match=r"functions\.draft: steps is null and must be 3"):
        hold_manifest(manifest, recipe, "dist")


def test_two_changes_of_unit_a_step_are_planned() -> None:
    """To the engine behind each token's row of the table, and from it for each token's number."""
    recipe = load_recipe("gemma4-tiny", [f"draft.steps={STEPS}"])
    planned = make_plan(recipe)
    assert len([crossing for crossing in planned.lint.crossings if crossing.function == "draft"]) == 2 * STEPS
    assert (
        planned.workloads[-1].flops["draft"]
        == STEPS * make_plan(load_recipe("gemma4-tiny")).workloads[-1].flops["draft"]
    )


def test_more_tokens_than_a_call_of_score_verifies_are_refused() -> None:
    with pytest.raises(UserError, match=r"draft\.steps: 5 tokens per call are more than the 4 that `score` verifies"):
        load_recipe("gemma4-tiny", ["draft.steps=5"])
