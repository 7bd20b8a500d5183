"""Stages `rotary` and `torch`: what is right passes, and what is wrong is named."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from families import FAMILIES
from verify_cases import Saved, change, with_kind, without_rotary

from coreai_recipes.decoder.filling import bind_weights
from coreai_recipes.decoder.model import Decoder
from coreai_recipes.errors import CheckpointError
from coreai_recipes.recipe import Recipe, load_resolved
from coreai_recipes.verification import StageResult, run_stages, streamed
from coreai_recipes.verification.greedy import Divergence
from coreai_recipes.verification.reference import Reference
from coreai_recipes.verification.stages import torch as torch_stage
from coreai_recipes.weights.names import list_names
from coreai_recipes.weights.rewrite import Rewrite

KNOWN = [name for name in FAMILIES if name.partition("_")[0] in list_names()]


def run(stage: str, recipe: Recipe, checkpoint: Any, **options: Any) -> StageResult:
    return run_stages(recipe, checkpoint, None, stages=[stage], **options).stages[0]


@pytest.mark.parametrize("family", KNOWN)
def test_a_family_equals_transformers(family: str, saved: Callable[[str], Saved]) -> None:
    recipe, checkpoint = saved(family)
    report = run_stages(recipe, checkpoint, None, stages=["rotary", "torch"])
    rotary, layers = report.stages
    assert report.passed, report.to_json()
    assert set(rotary.detail["kinds"].values()) == {"bit-exact"}
    assert (rotary.psnr_db, rotary.floor_db, rotary.detail["positions"]) == (float("inf"), None, [0, 63])
    # four tensors of each layer, the logits; a layer that shares another's cache has no keys of its own
    kinds = recipe.model.kinds
    shared = sum(kinds[name].attention.shares_kv_with is not None for name in recipe.model.layer_kinds)
    assert layers.detail["tensors"] == 4 * len(recipe.model.layer_kinds) - shared + 1
    assert (layers.psnr_db or 0) >= 120
    assert layers.detail["greedy"]["equal"] is True


def test_the_trained_model_equals_transformers(tiny_llama: Saved) -> None:
    result = run("torch", *tiny_llama)
    assert result.passed, result.to_json()
    assert (result.detail["tokens"], result.detail["positions"]) == ("an English passage", 200)
    assert result.detail["greedy"]["not_equal"] == []


def test_a_context_shorter_than_the_prompts_has_shorter_prompts(tiny_llama: Saved) -> None:
    """A prompt that left no room for a token ended the stage in torch's `stack expects a non-empty TensorList`."""
    recipe = load_resolved("tiny-llama", ["export.context=5", "export.functions.prefill=2"]).recipe
    result = run("torch", recipe, tiny_llama[1])
    assert result.passed, result.to_json()
    assert result.detail["greedy"]["equal"] is True


def test_the_layer_without_its_rotary_is_named(tiny_llama: Saved) -> None:
    recipe, checkpoint = tiny_llama
    result = run("torch", without_rotary(recipe, 2), checkpoint)
    assert result.passed is False
    first = result.detail["first_below"]
    assert first["tensor"] == "layers.2.query"
    assert first["psnr_db"] < 40
    assert first["snr_min_db"] < 20


@pytest.mark.parametrize("changes", [{"theta": 10001.0}, {"pairing": "interleaved"}])
def test_a_wrong_rotary_fails_both_stages(changes: dict[str, Any], saved: Callable[[str], Saved]) -> None:
    recipe, checkpoint = saved("llama")
    wrong = with_kind(recipe, "full", rotary=changes)
    report = run_stages(wrong, checkpoint, None, stages=["rotary", "torch"])
    assert [stage.passed for stage in report.stages] == [False, False]
    assert report.stages[0].detail["first_below"]["tensor"] == "full.rotary in float32"
    assert report.stages[1].detail["first_below"]["tensor"] == "layers.0.query"


def test_the_kind_whose_rotary_is_wrong_is_named(saved: Callable[[str], Saved]) -> None:
    recipe, checkpoint = saved("qwen2")
    wrong = with_kind(recipe, "sliding", rotary={"theta": 1.1e6})
    report = run_stages(wrong, checkpoint, None, stages=["rotary", "torch"])
    rotary, layers = report.stages
    assert rotary.detail["kinds"] == {"full": "bit-exact", "sliding": "differs"}
    first = recipe.model.layer_kinds.index("sliding")
    assert layers.detail["first_below"]["tensor"] == f"layers.{first}.query"


def test_a_wrong_window_is_found_by_the_attention(saved: Callable[[str], Saved]) -> None:
    recipe, checkpoint = saved("mistral")
    result = run("torch", with_kind(recipe, "sliding", attention={"window": 6}), checkpoint)
    assert result.detail["first_below"]["tensor"] == "layers.0.attention"


def test_a_wrong_eps_is_found(saved: Callable[[str], Saved]) -> None:
    recipe, checkpoint = saved("llama")
    norm = {**recipe.model.norm.model_dump(), "eps": 2e-5}
    result = run("torch", change(recipe, norm=norm), checkpoint)
    assert result.passed is False
    assert result.detail["first_below"]["tensor"] == "layers.0.query"


@pytest.mark.parametrize(
    ("parameter", "tensor"),
    [
        ("layers.1.attention.q.weight", "layers.1.query"),
        ("layers.1.attention.k.weight", "layers.1.key"),
        ("layers.1.attention.v.weight", "layers.1.attention"),
        ("layers.1.attention.o.weight", "layers.1.attention"),
        ("layers.2.mlp.down.weight", "layers.2.output"),
        ("norm.weight", "logits"),
        ("head.weight", "logits"),
    ],
)
def test_a_wrong_weight_is_named_and_no_other(
    parameter: str, tensor: str, saved: Callable[[str], Saved], monkeypatch: pytest.MonkeyPatch
) -> None:
    def bind(decoder: Decoder, checkpoint: Any) -> Any:
        bindings = bind_weights(decoder, checkpoint)
        return bindings | {parameter: replace(bindings[parameter], rewrite=Rewrite(offset=0.01))}

    monkeypatch.setattr(streamed, "bind_weights", bind)
    recipe, checkpoint = saved("llama")
    result = run("torch", recipe, checkpoint)
    assert result.passed is False
    assert result.detail["first_below"]["tensor"] == tensor


def test_swapped_keys_and_values_are_named(saved: Callable[[str], Saved], monkeypatch: pytest.MonkeyPatch) -> None:
    def bind(decoder: Decoder, checkpoint: Any) -> Any:
        bindings = bind_weights(decoder, checkpoint)
        k, v = (f"layers.1.attention.{name}.weight" for name in "kv")
        return bindings | {k: bindings[v], v: bindings[k]}

    monkeypatch.setattr(streamed, "bind_weights", bind)
    assert run("torch", *saved("llama")).detail["first_below"]["tensor"] == "layers.1.key"


@pytest.mark.parametrize("family", ["llama", "llama_tied", "llama3_scaled"])
def test_the_streamed_reference_is_transformers_own_forward(family: str, saved: Callable[[str], Saved]) -> None:
    recipe, checkpoint = saved(family)
    model = FAMILIES[family]().model
    ids = list(range(3, 60, 2))
    reference = Reference(recipe, checkpoint)
    theirs = model(input_ids=torch.tensor([ids])).logits[0]
    torch.testing.assert_close(reference.run(ids), theirs, rtol=0, atol=2e-6)
    assert torch.equal(reference.model.model.rotary_emb.inv_freq, model.model.rotary_emb.inv_freq)
    # a token table is one number, repeated: some models take the ids to where it is
    emptied = [p.is_meta or p.untyped_storage().nbytes() == p.element_size() for p in reference.model.parameters()]
    assert all(emptied), "what was filled is emptied again"


def test_a_half_precision_reference_keeps_its_frequencies(saved: Callable[[str], Saved]) -> None:
    recipe, checkpoint = saved("llama")
    half, full = (Reference(recipe, checkpoint, dtype) for dtype in (torch.float16, torch.float32))
    assert half.model.lm_head.weight.dtype == torch.float16
    assert torch.equal(half.model.model.rotary_emb.inv_freq, full.model.model.rotary_emb.inv_freq)


def test_greedy_that_parts_fails_the_stage_and_a_tie_does_not(
    saved: Callable[[str], Saved], monkeypatch: pytest.MonkeyPatch
) -> None:
    parted = Divergence(prompt=1, step=7, theirs=5, ours=9, gap=0.5)
    monkeypatch.setattr(torch_stage, "compare_greedy", lambda *_: [parted])
    result = run("torch", *saved("llama"))
    assert result.passed is False
    assert result.detail["greedy"]["not_equal"] == ["prompt 1, token 7: transformers 5, ours 9, gap 0.5"]
    monkeypatch.setattr(torch_stage, "compare_greedy", lambda *_: [replace(parted, gap=5e-5)])
    result = run("torch", *saved("llama"))
    assert result.passed is True
    assert result.detail["greedy"]["ties"] == ["prompt 1, token 7: transformers 5, ours 9, gap 5e-05"]


def test_greedy_is_skipped_with_the_gigabytes_that_it_needs(
    saved: Callable[[str], Saved], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coreai_recipes.verification.memory.free_bytes", lambda: 1e5)
    result = run("torch", *saved("llama"))
    assert result.passed is True
    assert result.detail["greedy"]["skipped"] == (
        "needs 0.0 GB of free memory, three times the float32 model's 0.0 GB; 0.0 GB are free"
    )


def test_greedy_finds_a_cache_that_forgets(saved: Callable[[str], Saved], monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison by layers has no cache; only greedy would see a Decoder whose states are lost."""
    make = Decoder.forward

    def forget(self: Decoder, input_ids: Any, position: int = 0, count: Any = None, states: Any = None) -> Any:
        return make(self, input_ids, position, count, self.make_states() if states is not None else None)

    monkeypatch.setattr(Decoder, "forward", forget)
    result = run("torch", *saved("llama"))
    assert result.passed is False
    assert result.detail["greedy"]["equal"] is False


def test_a_config_of_another_family_is_refused(saved: Callable[[str], Saved]) -> None:
    recipe, checkpoint = saved("llama")
    other = Recipe.model_validate(recipe.model_dump() | {"reference": {"model_type": "qwen3"}})
    with pytest.raises(CheckpointError, match="says model_type llama, but the recipe's reference is qwen3"):
        run("torch", other, checkpoint)
