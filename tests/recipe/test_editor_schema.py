"""The JSON Schema takes every recipe as it is written, and refuses what the loader refuses."""

import json
from pathlib import Path

import pytest

from coreai_recipes.recipe import built_in_recipes, data_folder, json_schema, write_schema
from coreai_recipes.recipe.yaml_reader import read_yaml

jsonschema = pytest.importorskip("jsonschema")
GEMMA4 = Path(__file__).with_name("gemma4-e2b.yaml")


@pytest.fixture(scope="module")
def validator():
    schema = json_schema()
    jsonschema.Draft7Validator.check_schema(schema)
    return jsonschema.Draft7Validator(schema)


def as_written(path: Path):
    return read_yaml(path.read_bytes(), str(path))[0].plain()


def test_the_committed_schema_is_the_generated_one(tmp_path):
    write_schema(tmp_path / "new.json")
    committed = data_folder("schemas") / "recipe.schema.json"
    stale = "run `recipe schema > schemas/recipe.schema.json`"
    assert committed.read_text() == (tmp_path / "new.json").read_text(), stale
    assert json.loads(committed.read_text()) == json_schema()


@pytest.mark.parametrize("path", [*built_in_recipes().values(), GEMMA4], ids=lambda path: path.stem)
def test_every_recipe_as_written_validates(validator, path):
    assert [error.message for error in validator.iter_errors(as_written(path))] == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("hidden_size: 32", "hiden_size: 32"),
        ("  vocab_size: 64\n", ""),
        ("vocab_size: 64", "vocab_size: null"),
        ("num_heads: 4, ", ""),
        ("head_dim: 8", "head_dim: 8, window: 3"),
        ("theta: 10000", "theta: 10000, factor: 0.5"),
        ("kind: full, theta", "kind: none, theta"),
        ("{kind: full, theta: 10000}", "{kind: partial, theta: 1, factor: 1.5}"),
        ("tied: true", "tied: 1"),
        ("    full:\n", "    full:\n      like: other\n      window: 3\n"),
    ],
)
def test_an_editor_marks_what_the_loader_refuses(validator, small, refusal, old, new):
    assert old in small
    text = small.replace(old, new)
    assert refusal(text)
    assert not validator.is_valid(read_yaml(text.encode(), "r.yaml")[0].plain())


@pytest.mark.parametrize(
    "text",
    [
        "extends: base\n",
        "extends: base\nmodel: {head: {softcap: null}, hidden_size: null}\n",
        "extends: base\nmodel: {kinds: {full: {rotary: {theta: 5}}, old: null}}\n",
        "extends: base\nmodel: {kinds: {full: {attention: {window: null}, rotary: {kind: partial, factor: 0.25}}}}\n",
        "extends: base\nreference: null\nexport: {functions: {score: 4}}\n",
    ],
)
def test_a_part_that_inherits_needs_nothing_and_may_remove(validator, text):
    assert [error.message for error in validator.iter_errors(read_yaml(text.encode(), "r.yaml")[0].plain())] == []


@pytest.mark.parametrize(
    "text",
    [
        "extends: base\nmodle: {}\n",
        "extends: base\nmodel: {kinds: {full: {rotary: {thta: 5}}}}\n",
        "extends: base\nmodel: {kinds: {full: {attention: {kind: full, window: 5}}}}\n",
        "extends: base\nmodel: {hidden_size: x}\n",
        "extends: [base]\n",
    ],
)
def test_a_part_that_inherits_is_still_checked(validator, text):
    assert not validator.is_valid(read_yaml(text.encode(), "r.yaml")[0].plain())
