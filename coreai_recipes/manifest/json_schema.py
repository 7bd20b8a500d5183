"""manifest.json's JSON Schema, for hosts and their tools: `python -m coreai_recipes.manifest.json_schema` prints it."""

import json
from typing import Any

from pydantic.json_schema import GenerateJsonSchema

from coreai_recipes.manifest.schema import Manifest


class _Untitled(GenerateJsonSchema):
    """Without the titles that pydantic makes of names, and OpenAPI's `discriminator`: `role` is constant in each."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def dict_schema(self, schema: Any) -> dict[str, Any]:
        """Pydantic says of names only what holds for those that match."""
        found = super().dict_schema(schema)
        return found | ({"additionalProperties": False} if "patternProperties" in found else {})

    def tagged_union_schema(self, schema: Any) -> dict[str, Any]:
        return {key: value for key, value in super().tagged_union_schema(schema).items() if key != "discriminator"}


def json_schema() -> dict[str, Any]:
    """The schema of a manifest of the format in force. Keys that it does not name are allowed: a host ignores them."""
    found = Manifest.model_json_schema(mode="validation", schema_generator=_Untitled)
    head = {"$schema": GenerateJsonSchema.schema_dialect, "title": "coreai-recipes: manifest.json of a bundle"}
    return {**head, **{key: value for key, value in found.items() if key != "title"}}


def schema_text() -> str:
    """The schema as JSON text, as it lies in schemas/."""
    return json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    print(schema_text(), end="")
