"""A package for ANEMLL's host: its calls give what the decoder gives, over kinds that turn otherwise, in parts."""

from pathlib import Path
from typing import Any

import pytest
import torch
from figures import psnr
from programs import export, filled, layer_kind, small_recipe

from coreai_recipes.decoder.model import build_decoder
from coreai_recipes.decoder.states import state_specs
from coreai_recipes.evaluate import Program
from coreai_recipes.evaluate.package_reader import Package
from coreai_recipes.export.cache import FragmentCache
from coreai_recipes.hosts.anemll import functions_of
from coreai_recipes.recipe.host_form import anemll_form
from coreai_recipes.recipe.schema import Recipe
from coreai_recipes.running.anemll import host_inputs

pytestmark = pytest.mark.xdist_group(__name__)

VOCAB = 33_000  # three parts
CONTEXT, PREFILL = 64, 12


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    sizes: dict[str, Any] = {"attention_num_heads": 2, "attention_num_kv_heads": 1, "attention_head_dim": 8}
    kinds = {
        "partial": layer_kind(rotary={"kind": "partial", "pairing": "interleaved"}, **sizes),
        "none": layer_kind(rotary="none", attention_temperature={"beta": 0.1, "original_context": 4}, **sizes),
    }
    made = small_recipe(
        kinds, ["partial", "none", "partial"], context=CONTEXT, prefill=PREFILL, vocab_size=VOCAB, hidden_size=16
    )
    return made.model_copy(update={"export": made.export.model_copy(update={"host": "anemll"})})


@pytest.fixture(scope="module")
def package(recipe: Recipe, made: Any, cache: FragmentCache) -> Path:
    folder: Path = made("anemll.mlpackage", lambda folder: export(recipe, folder, cache))
    return folder


def test_full_batches_and_single_tokens_give_the_decoders_logits(recipe: Recipe, package: Path) -> None:
    program, ids = Program(package), torch.randint(0, VOCAB, (28,), generator=torch.Generator().manual_seed(3)).tolist()
    with torch.inference_mode():
        whole = filled(recipe)(torch.tensor([ids]))[0]
    state = program.make_state()
    calls = [("prefill", 0, PREFILL), ("prefill", PREFILL, PREFILL), *(("infer", at, 1) for at in range(23, 28))]
    for name, position, count in calls:  # the last token of a prefill is fed once more, as the host does
        given = host_inputs(ids[position : position + count], position, CONTEXT)
        outputs = program.function(name)(given, state)
        assert list(outputs) == ["logits1", "logits2", "logits3"]
        ours = torch.cat([part.reshape(-1) for part in outputs.values()])
        assert ours.shape == (VOCAB,)
        assert psnr(whole[position + count - 1], ours) >= 90, (name, position)


def test_the_package_is_called_as_the_host_calls_it(recipe: Recipe, package: Path) -> None:
    opened = Package(package)
    assert opened.description.defaultFunctionName == "infer"
    for name, (inputs, outputs, states) in opened.signatures().items():
        _, wanted, given = functions_of(anemll_form(recipe))[name]
        assert (inputs, outputs) == (wanted, given)
        assert states == {"kv_partial": ("float16", (6, 1, CONTEXT, 8))}


def test_a_state_has_a_row_for_each_column_of_the_mask(recipe: Recipe) -> None:
    """And nothing to spare for padding, which this host does not have."""
    assert {spec.rows for spec in state_specs(recipe).values()} == {CONTEXT}
    ports = build_decoder(recipe).call("prefill").ports("none")
    assert "padding" not in ports
    assert ports["mask"] == (1, CONTEXT, 1, PREFILL)


def test_no_infinity_of_the_mask_goes_into_the_layers(recipe: Recipe, package: Path) -> None:
    program, seen = Program(package), dict[str, float]()

    def watch(name: str, value: torch.Tensor, operation: str) -> None:
        if name.startswith("mask_"):
            seen[name] = float(value.min())

    program.function("infer")(host_inputs([5], 0, CONTEXT), program.make_state(), watch)
    assert seen == {"mask_partial": -1e4}
