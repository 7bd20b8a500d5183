"""docs/recipes.md lists every field of the recipe language, and its examples are recipes."""

import re
from pathlib import Path

from field_table import PAGE, fields, split_page

from coreai_recipes.recipe import load_recipe
from coreai_recipes.recipe.schema import LayerKind, LongRopeScaling, Recipe, Router

README = PAGE.parents[1] / "README.md"
STALE = "run `make schema`"


def test_the_fields_of_the_page_are_those_of_the_models() -> None:
    assert split_page(PAGE.read_text())[1] == fields(), STALE


def test_a_field_at_any_depth_is_listed_with_its_meaning() -> None:
    listed = fields()
    for model in (Recipe, LayerKind, LongRopeScaling, Router):
        for name, info in model.model_fields.items():
            assert name == "kind" or re.search(rf"\| `{name}` \|.*\| {re.escape(info.description)} \|", listed)
    assert not re.search(r"\|  \|$", listed, re.MULTILINE), "a field says nothing of what it means"


def test_the_examples_of_the_page_are_recipes(tmp_path: Path) -> None:
    examples = re.findall(r"```yaml\n# (\S+\.yaml)\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(examples) == 4
    for name, text in examples:
        (tmp_path / name).write_text(text)
    for name, _ in examples:
        load_recipe(tmp_path / name)


def test_the_recipe_of_the_readme_is_the_built_in_one(tmp_path: Path) -> None:
    (text,) = re.findall(r"```yaml\n(recipe: 1\n.*?)```", README.read_text(), re.DOTALL)
    (tmp_path / "readme.yaml").write_text(text)
    assert load_recipe(tmp_path / "readme.yaml") == load_recipe("qwen3-0.6b")
