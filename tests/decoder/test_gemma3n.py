"""Gemma 3n: streams, branches of low rank, cut gates and a short per-layer table, against transformers; and mutants."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from family_configs import all_configs
from figures import psnr
from small_models import small_model
from torch import Tensor

from coreai_recipes.checkpoint.safetensors import SafetensorsCheckpoint
from coreai_recipes.decoder.filling import bind_weights, fill_from
from coreai_recipes.decoder.model import Decoder, build_decoder
from coreai_recipes.primitives import altup, mlp
from coreai_recipes.primitives.layer import Form
from coreai_recipes.recipe.importing.assembling import recipe_from_config

FLOOR = 100.0  # of stage torch
S = 40


class Pair(NamedTuple):
    checkpoint: SafetensorsCheckpoint
    ids: Tensor
    logits: Tensor

    def decoder(self, form: Form | None = None) -> Decoder:
        recipe = recipe_from_config(self.checkpoint.config, "small").recipe
        decoder = build_decoder(recipe) if form is None else build_decoder(recipe, form)
        fill_from(decoder, bind_weights(decoder, self.checkpoint))
        return decoder


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """transformers' model of the family's unusual config, and its logits of ids beyond the per-layer table too."""
    from transformers import Gemma3nForCausalLM, Gemma3nTextConfig

    values = {**all_configs()["gemma3n_text-unusual"]}
    del values["model_type"]
    config = Gemma3nTextConfig(**values, attn_implementation="eager")
    theirs = small_model(Gemma3nForCausalLM, config, seed=3)
    folder = tmp_path_factory.mktemp("gemma3n")
    theirs.save_pretrained(folder)
    ids = torch.randint(0, config.vocab_size, (1, S), generator=torch.Generator().manual_seed(1))
    ids[0, ::7] = config.vocab_size_per_layer_input + 3
    with torch.inference_mode():
        return Pair(SafetensorsCheckpoint(folder), ids, theirs(input_ids=ids).logits)


def test_it_is_transformers_model(pair: Pair) -> None:
    assert psnr(pair.logits, pair.decoder()(pair.ids)) > 120


@pytest.mark.parametrize(
    "form", [Form(residual_scale=0.25), Form(mlp_scale=0.5, head_scale=0.25), Form(folded="contiguous")]
)
def test_its_exported_forms_are_the_same(pair: Pair, form: Form) -> None:
    assert psnr(pair.logits, pair.decoder(form)(pair.ids)) > 120


def test_padded_calls_and_single_tokens_are_the_whole_sequence(pair: Pair) -> None:
    ours = pair.decoder()
    states, position, found = ours.make_states(), 0, []
    for count in (8, 7, 8, 3):
        call = torch.full((1, 8), 5)
        call[0, :count] = pair.ids[0, position : position + count]
        found.append(ours(call, position, count, states)[:, :count])
        position += count
    for at in range(position, S):
        found.append(ours(pair.ids[:, at : at + 1], at, 1, states))
    assert psnr(pair.logits, torch.cat(found, 1)) > 120


def rows_to_all(self: Any, x: Tensor, rows: Callable[[Tensor], Tensor]) -> Tensor:
    return x + rows(self.active_of(x) * self.output_scale)


def without_output_scale(self: Any, x: Tensor, rows: Callable[[Tensor], Tensor]) -> Tensor:
    return torch.cat((x[:1], x[1:] + rows(self.active_of(x))))


def rows_to_all_but_the_active(self: Any, x: Tensor, rows: Callable[[Tensor], Tensor]) -> Tensor:
    given = rows(self.active_of(x) * self.output_scale)
    others = torch.arange(self.count).view(-1, 1, 1, 1) != self.active
    return x + given * others


def with_unbiased_deviation(x: Tensor, deviations: float) -> Tensor:
    return torch.relu(x - x.mean(1, keepdim=True) - deviations * x.std(1, keepdim=True))


MUTANTS: dict[str, tuple[Any, str, Any]] = {
    "per-layer rows to all streams": (altup.AltUp, "add_rows", rows_to_all),
    "per-layer rows to all but the active one": (altup.AltUp, "add_rows", rows_to_all_but_the_active),
    "per-layer gates without their scale": (altup.AltUp, "add_rows", without_output_scale),
    "an unbiased deviation": (mlp, "beyond", with_unbiased_deviation),
    "streams of their own magnitude": (altup, "_brought_to", lambda wanted, x, least: x),
    "no prediction": (altup.AltUp, "predict", lambda self, x: x),
    "all streams corrected alike": (
        altup.AltUp,
        "correct",
        lambda self, predicted, activated: predicted + activated - self.active_of(predicted),
    ),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_fault_in_a_mechanism_is_seen(pair: Pair, mutant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    target, name, replacement = MUTANTS[mutant]
    monkeypatch.setattr(target, name, replacement)
    assert psnr(pair.logits, pair.decoder()(pair.ids)) < FLOOR - 30


def test_streams_of_float16_s_largest_values_stay_finite() -> None:
    x = torch.randn(1, 48, 1, 3, generator=torch.Generator().manual_seed(0)).mul(8e3).half()
    assert psnr(altup.magnitude(x.double()), altup.magnitude(x)) > 60
    assert torch.isfinite(mlp.beyond(x, 1.6)).all()
