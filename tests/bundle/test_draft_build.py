"""A draft that a recipe does not mention, built from its own config.json, whose head looks into clusters of tokens."""

from pathlib import Path

from families import gemma4
from gemma4_drafts import gemma4_draft
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from coreai_recipes import build
from coreai_recipes.recipe.schema import Compress, Recipe
from coreai_recipes.verification.draft_reference import all_layers_may_share


def test_a_draft_named_on_the_command_line_becomes_a_function_that_equals_its_reference(tmp_path: Path) -> None:
    pair = gemma4(
        experts=False, pad_token_id=0, context=64, vocab_size=128, vocab_size_per_layer_input=128,
    )  # fmt: skip
    _, draft = gemma4_draft(pair, clusters=16)
    pair.model.save_pretrained(tmp_path / "target")
    with all_layers_may_share():
        draft.save_pretrained(tmp_path / "draft")
    letters = Tokenizer(models.BPE({chr(32 + index): index for index in range(96)}, [], unk_token=" "))
    letters.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    PreTrainedTokenizerFast(tokenizer_object=letters, eos_token=" ").save_pretrained(tmp_path / "target")
    export = {**pair.recipe.export.model_dump(), "functions": {"prefill": 16}}
    recipe = Recipe.model_validate({**pair.recipe.model_dump(), "weights": {"names": "gemma4"}, "export": export})
    # a rule may name the matrices of a draft that only its own config describes; no text is of its letters alone
    rules = [{"match": "draft.layers.*", "kind": "palettize", "bits": 6}]
    recipe = recipe.model_copy(
        update={
            "compress": Compress.model_validate(
                {
                    "default": {"kind": "float16"},
                    "rules": rules,
                    "calibration": None,
                }
            )
        }
    )
    assert recipe.draft is None

    bundle = build(recipe, tmp_path / "target", tmp_path / "dist", draft=tmp_path / "draft")

    stage = next(stage for stage in bundle.report["stages"] if stage["name"] == "draft")
    assert stage["passed"]
    assert stage["detail"]["equal"] == {"torch": True, "package": True}
    built = bundle.recipe
    assert built.draft is not None
    assert built.draft.centroids is not None
    assert (built.draft.centroids.count, built.draft.centroids.top) == (16, 3)
    assert built.export.functions.score == 5
    functions = next(entry for entry in bundle.manifest["packages"] if entry["role"] == "all")["functions"]
    assert set(functions["draft"]["outputs"]) == {"logits", "hidden"}
    assert set(functions["decode"]["outputs"]) == {"logits", "hidden"}
    assert set(bundle.manifest["checkpoint"]["draft"]["sha256"]) == {"model.safetensors"}
