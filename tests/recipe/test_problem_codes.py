"""Codes of problems: stable ids that programs decide by; the words may change."""

import ast
import json
import re
from pathlib import Path

import pytest

import coreai_recipes.recipe
from coreai_recipes.errors import RecipeError
from coreai_recipes.recipe import rotary_rules, rules

RECIPE = Path(coreai_recipes.recipe.__file__).parent


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ("model.hidden_size=-1", "value"),
        ("model.hiden_size=32", "key-unknown"),
        ("model.kinds.full.attention.kind=flash", "kind-invalid"),
        ("model.kinds.full.attention.num_kv_heads=3", "heads-groups"),
        ("model.kinds.full.like=other", "like-unknown"),
        ("export", "set-invalid"),
        ("export.context=[", "yaml"),
    ],
)
def test_every_line_has_the_code_of_its_problem(small, load, change, code):
    with pytest.raises(RecipeError) as caught:
        load(small, change)
    assert caught.value.codes == (code,)


def test_json_shows_the_codes(run, tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("recipe: 1\n- \n")
    (broken,) = json.loads(run("validate", path, "--json")[1])["recipes"]
    assert [problem["code"] for problem in broken["problems"]] == ["yaml"]
    (gone,) = json.loads(run("validate", tmp_path / "gone.yaml", "--json")[1])["recipes"]
    assert gone["problems"][0]["code"] == "recipe"
    assert gone["problems"][0]["message"].startswith(str(tmp_path / "gone.yaml"))


def test_nobody_decides_by_words(small, refusal, monkeypatch):
    """`loader` once told consequences from causes by how their messages began."""
    text = small.replace("rotary: {kind: full, theta: 10000}", "rotary: {factor: 0.5}")
    before = refusal(text)

    problem = rules.Problem
    for room in (rules, rotary_rules):
        monkeypatch.setattr(room, "Problem", lambda at, code, *rest, **also: problem(at, code, "in other words", None))
    assert len(refusal(text)) == len(before) == 1
    for path in RECIPE.rglob("*.py"):
        assert not re.search(r"message(\.startswith| == )", path.read_text()), path


def test_every_problem_of_a_recipe_has_a_code():
    """A message in its place is no fault to a type checker."""
    for path in RECIPE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Problem":
                code = node.args[1]
                written = code.value if isinstance(code, ast.Constant) else ""
                assert re.fullmatch(r"[a-z0-9-]*", written), f"{path}:{node.lineno}"
