"""The JSON Schema that editors check a zoo.yaml with, generated from the models."""

import json
from typing import Any

from coreai_recipes.recipe.editor_schema import tidy
from coreai_recipes.zoo.schema import Zoo


def json_schema() -> dict[str, Any]:
    """Draft 7."""
    schema: dict[str, Any] = tidy(Zoo.model_json_schema(mode="validation"))
    return {"$schema": "http://json-schema.org/draft-07/schema#", "title": "coreai-recipes: a zoo", **schema}


def schema_text() -> str:
    """The schema as JSON text."""
    return json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    print(schema_text(), end="")
