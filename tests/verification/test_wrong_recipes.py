"""A recipe that is not the checkpoint's model is seen by a stage: the reference is made of the checkpoint, never of the
recipe. Each test says one thing wrong and names the first tensor that shows it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from verify_cases import Saved, change, with_kind

from coreai_recipes.errors import CheckpointError
from coreai_recipes.recipe import Recipe
from coreai_recipes.verification import StageResult, memory, run_stages
from coreai_recipes.weights.names import load_names

Wrong = Callable[[Recipe], Recipe]


def run(recipe: Recipe, checkpoint: Any, stage: str = "torch") -> StageResult:
    return run_stages(recipe, checkpoint, None, stages=[stage]).stages[0]


def of_norm(**fields: Any) -> Wrong:
    return lambda recipe: change(recipe, norm=recipe.model.norm.model_dump() | fields)


def of_kind(kind: str, **parts: dict[str, Any]) -> Wrong:
    return lambda recipe: with_kind(recipe, kind, **parts)


def of_part(part: str, **fields: Any) -> Wrong:
    return lambda recipe: change(recipe, **{part: getattr(recipe.model, part).model_dump() | fields})


@pytest.mark.parametrize(
    ("wrong", "first"),
    [
        (of_norm(eps=1e-3), "layers.0.query"),
        (of_norm(weight="w"), "layers.0.query"),
        (of_kind("sliding", rotary={"theta": 10010.0}), "layers.0.query"),
        (of_kind("full", rotary={"theta": 10010.0}), "layers.1.query"),
        (of_kind("sliding", attention={"window": 8}), "layers.0.attention"),
        (of_kind("full", attention={"scale": 12**-0.5}), "layers.1.query"),
        (of_kind("full", attention={"softcap": 5.1}), "layers.1.attention"),
        (of_kind("full", attention={"softcap": None}), "layers.1.attention"),
        (of_kind("full", mlp={"activation": "gelu"}), "layers.1.output"),
        (of_kind("sliding", mlp={"activation": "silu"}), "layers.0.output"),
        (of_part("embedding", scale=1.0), "embedding"),
        (of_part("head", softcap=None), "logits"),
        (of_part("head", softcap=7.1), "logits"),
        (of_part("head", scale=1.01), "logits"),
        (lambda recipe: change(recipe, layers=["sliding", "sliding", "full"]), "layers.1.attention"),
    ],
    ids=[
        *("eps", "norm weight", "theta of sliding", "theta of full", "window", "score scale", "softcap"),
        *("no softcap", "the other gelu", "activation", "embedding scale", "no softcap of logits"),
        *("softcap of logits", "scale of logits", "order of layers"),
    ],
)
def test_what_is_wrong_is_seen_where_it_enters(
    wrong: Wrong, first: str, saved: Callable[[str], Saved], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the layers alone, as for a model that is too large to be decoded greedily."""
    monkeypatch.setattr(memory, "free_bytes", lambda: 0.0)
    recipe, checkpoint = saved("gemma2")
    assert run(recipe, checkpoint).passed
    result = run(wrong(recipe), checkpoint)
    assert result.passed is False
    assert result.detail["first_below"]["tensor"] == first


def test_a_head_that_is_said_to_be_tied_and_is_not_is_seen(
    saved: Callable[[str], Saved], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, checkpoint = saved("llama")
    assert recipe.model.head.tied is False
    tied = change(recipe, head=recipe.model.head.model_dump() | {"tied": True})
    monkeypatch.setitem(checkpoint.config, "tie_word_embeddings", True)
    result = run(tied, checkpoint)
    assert (result.passed, result.detail["first_below"]["tensor"]) == (False, "logits")


@pytest.mark.parametrize(
    ("exchange", "first"),
    [
        (("mlp.gate.weight", "mlp.up.weight"), "layers.0.output"),
        (("attention.k.weight", "attention.v.weight"), "layers.0.key"),
        (("attention_norm.weight", "mlp_norm.weight"), "layers.0.query"),
    ],
)
def test_weight_names_that_fit_and_are_wrong_are_seen(
    exchange: tuple[str, str],
    first: str,
    saved: Callable[[str], Saved],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two tensors of one shape under each other's names: the reference used to read by the same table's prefixes."""
    monkeypatch.chdir(tmp_path)
    recipe, checkpoint = saved("llama")
    tensors = load_names("llama").tensors
    one, other = (f"layers.{{i}}.{name}" for name in exchange)
    lines = f"  {one}: {tensors[other].tensor}\n  {other}: {tensors[one].tensor}\n"
    Path("exchanged.yaml").write_text(f"extends: llama\ntensors:\n{lines}")
    wrong = Recipe.model_validate(recipe.model_dump() | {"weights": {"names": "exchanged.yaml"}})
    result = run(wrong, checkpoint)
    assert (result.passed, result.detail["first_below"]["tensor"]) == (False, first)


def test_a_name_that_the_files_do_not_have_is_refused_and_not_followed(
    saved: Callable[[str], Saved], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe, checkpoint = saved("llama")
    Path("none.yaml").write_text("extends: llama\ntensors: {norm.weight: nowhere.norm.weight}\n")
    wrong = Recipe.model_validate(recipe.model_dump() | {"weights": {"names": "none.yaml"}})
    with pytest.raises(CheckpointError, match="is missing: the recipe needs it"):
        run(wrong, checkpoint)


@pytest.mark.parametrize("other", ["mistral", "qwen2", "granite", "cohere"])
def test_a_family_whose_tensors_fit_is_refused_by_its_name(other: str, saved: Callable[[str], Saved]) -> None:
    recipe, checkpoint = saved("llama")
    wrong = Recipe.model_validate(recipe.model_dump() | {"reference": {"model_type": other}})
    for stage in ("rotary", "torch"):
        with pytest.raises(CheckpointError, match=f"says model_type llama, but the recipe's reference is {other}"):
            run(wrong, checkpoint, stage)


def test_each_stage_says_what_its_reference_is_made_of(tiny_llama: Saved, tiny_package: Path) -> None:
    report = run_stages(*tiny_llama, tiny_package)
    said = {stage.name: stage.detail.get("reference") for stage in report.stages if not stage.skipped}
    of_file = {"config": "config.json", "tensors": "the checkpoint's, by transformers' names"}
    ours = {"config": "the recipe, as stage torch compares it", "tensors": "our own module's, as stored"}
    tokenizer = {"tokenizer": "transformers' AutoTokenizer of the checkpoint's own files"}
    assert said == {
        "rotary": of_file,
        "torch": of_file,
        "package": ours,
        "package_float16": of_file,
        "package_engine": of_file,
        "tokenizer": tokenizer,
    }


def test_the_exceptions_are_named(tiny_llama: Saved, tiny_package: Path) -> None:
    from coreai_recipes import verify

    recipe, checkpoint = tiny_llama
    (made_up,) = verify(recipe, random=True, stages=["rotary"]).stages
    assert made_up.detail["reference"] == {"config": "of the recipe (not independent)", "tensors": "random"}
    alone = recipe.model_copy(update={"reference": None})
    (package,) = run_stages(alone, checkpoint, tiny_package, stages=["package"]).stages
    assert package.detail["reference"]["config"] == "none (reference: null)"


def test_a_failing_stage_says_what_the_checkpoint_has(
    tiny_llama: Saved, saved: Callable[[str], Saved], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, checkpoint = tiny_llama
    wrong = with_kind(
        change(recipe, norm=recipe.model.norm.model_dump() | {"eps": 2e-5}), "full", rotary={"theta": 9.0}
    )
    (layers,) = run_stages(wrong, checkpoint, None, stages=["torch"]).stages
    assert [remedy["text"] for remedy in layers.detail["remedies"]] == [
        "model.norm.eps: 1e-05 (the checkpoint's config has it so, the recipe has 2e-05)",
        "layers 0 to 3: rotary.theta: 10000 (the checkpoint's config has it so, the recipe has 9.0)",
    ]
    recipe, checkpoint = saved("llama")
    tied = change(recipe, head=recipe.model.head.model_dump() | {"tied": True})
    monkeypatch.setitem(checkpoint.config, "tie_word_embeddings", True)
    (remedy,) = run(tied, checkpoint).detail["remedies"]
    assert (remedy["field"], remedy["value"]) == ("model.head.tied", False)
