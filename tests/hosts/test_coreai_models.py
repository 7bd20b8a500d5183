"""What Apple's runner of coreai-models is told: metadata.json as its sources read it, and what stops it."""

import json
from typing import Any

import pytest

from coreai_recipes.hosts.coreai_models import METADATA, Settings, StaticForm, files_of, functions_of
from coreai_recipes.recipe import load_recipe
from coreai_recipes.recipe.host_form import static_form


def form_of(*overrides: str) -> StaticForm:
    hosted = ["export.format=coreai", "export.host=coreai-models"]
    return static_form(load_recipe("tiny-llama", [*hosted, *overrides]))


def said() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(files_of(form_of(), "model.aimodel")[METADATA])
    return found


def test_metadata_says_what_the_asset_is_and_that_the_tokenizer_is_there() -> None:
    assert Settings.read(said()) == Settings("model.aimodel", 256, 512)
    assert said()["language"]["embedded_tokenizer"] is True


def test_a_function_is_named_by_its_context_and_its_tokens() -> None:
    """As its host takes them apart: the last two numbers are these."""
    queries = {name: query for name, (query, _, _) in functions_of(form_of("export.functions.prefill=32")).items()}
    assert queries == {
        "load_embeddings": 512,
        "gather_embeddings_1": 1,
        "gather_embeddings_32": 32,
        "extend_256_1": 1,
        "extend_256_32": 32,
        "prompt_opt_256_32": 32,
    }


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"metadata_version": "0.1"}, "metadata_version is 0.1, and 0.2 is known"),
        ({"kind": "vlm"}, "kind is vlm, and not llm"),
        ({"assets": {}}, "assets.main is missing"),
        ({"language": {}}, "language.tokenizer is missing"),
        ({"language": {"tokenizer": "t"}}, "language has no max_context_length and vocab_size above 0"),
    ],
)
def test_what_stops_the_runner_is_said(changed: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=f"^metadata.json: {why}$"):
        Settings.read(said() | changed)
