"""The JSON Schema that editors check a recipe with, generated from the models.

An editor sees the file as it is written, before `extends` and `like` are resolved. So each model is there twice: whole,
and as a part that inherits (`...Part`), where nothing is required and `null` removes a key. A file that says `extends`,
and a kind that says `like`, are parts.
"""

import json
from pathlib import Path
from typing import Any

from coreai_recipes.recipe.plugins import load_installed
from coreai_recipes.recipe.schema import LayerKind, Recipe

Schema = dict[str, Any]
_PART = "Part"
_BY_NAME = ("properties", "patternProperties")
_INHERITS = {
    Recipe.__name__: (
        "extends",
        "the recipe to start from: a path relative to this file, or the name of a built-in recipe",
    ),
    LayerKind.__name__: ("like", "the kind that this one starts from"),
}


def json_schema() -> Schema:
    """The schema of a recipe as written, draft 7."""
    load_installed()
    generated = Recipe.model_json_schema(mode="validation")
    whole: dict[str, Schema] = generated.pop("$defs")
    whole[Recipe.__name__] = generated
    definitions: dict[str, Schema] = {}
    for name, model in sorted(whole.items()):
        definitions[name] = tidy(model)
        definitions[name + _PART] = _relax(tidy(model))
    for name, (key, description) in _INHERITS.items():
        for model in (definitions[name], definitions[name + _PART]):
            value = {"type": "string"} if model is definitions[name] else {"type": ["string", "null"]}
            model["properties"] = {key: {**value, "description": description}, **model["properties"]}
    definitions[LayerKind.__name__] = _inheriting(definitions, LayerKind.__name__)
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "coreai-recipes: a recipe",
        **_inheriting(definitions, Recipe.__name__, inline=False),
        "$defs": dict(sorted(definitions.items())),
    }


def write_schema(path: str | Path) -> None:
    """Write the schema as `recipe schema` prints it."""
    Path(path).write_text(schema_text(), encoding="utf-8")


def schema_text() -> str:
    """The schema as JSON text."""
    return json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"


def _inheriting(definitions: dict[str, Schema], name: str, inline: bool = True) -> Schema:
    """A part when it names what it inherits from, else whole."""
    key = _INHERITS[name][0]
    if inline:
        definitions[f"{name}Whole"] = definitions[name]
    whole = f"{name}Whole" if inline else name
    return {
        "if": {"required": [key]},
        "then": {"$ref": f"#/$defs/{name}{_PART}"},
        "else": {"$ref": f"#/$defs/{whole}"},
    }


def tidy(schema: Any) -> Any:
    """Without pydantic's generated titles and OpenAPI's `discriminator`: `kind` is a constant in each member."""
    if isinstance(schema, list):
        return [tidy(entry) for entry in schema]
    if not isinstance(schema, dict):
        return schema
    found = {
        key: {name: tidy(entry) for name, entry in value.items()} if key in _BY_NAME else tidy(value)
        for key, value in schema.items()
        if key != "discriminator" and not (key == "title" and isinstance(value, str))
    }
    if "patternProperties" in found:
        found["additionalProperties"] = False
    if "oneOf" in found:
        found["anyOf"] = found.pop("oneOf")
    return found


def _relax(model: Schema) -> Schema:
    """A model of which any part may be inherited, and any key removed by `null`."""
    relaxed: Schema = _refer_to_parts(model)
    relaxed.pop("required", None)
    relaxed["properties"] = {name: _or_null(value) for name, value in relaxed["properties"].items()}
    return relaxed


def _or_null(schema: Schema) -> Schema:
    """`schema` or null; the keys of a mapping with free keys may be null too, and it may be empty."""
    schema = dict(schema)
    if "patternProperties" in schema:
        schema["patternProperties"] = {key: _or_null(value) for key, value in schema["patternProperties"].items()}
        schema.pop("minProperties", None)
    outer: Schema = {key: schema.pop(key) for key in ("description", "default") if key in schema}
    members = schema["anyOf"] if set(schema) == {"anyOf"} else [schema]
    null = {"type": "null"}
    return {**outer, "anyOf": members if null in members else [*members, null]}


def _refer_to_parts(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_refer_to_parts(entry) for entry in schema]
    if not isinstance(schema, dict):
        return schema
    # A list is replaced whole, so its entries are whole as well.
    return {
        key: f"{value}{_PART}" if key == "$ref" else value if key == "items" else _refer_to_parts(value)
        for key, value in schema.items()
    }
