"""The gallery of the documentation is what its figures say, and the zoo behind it has every recipe that fits."""

import re
from pathlib import Path

import yaml

from bench.zoo_gallery import CHART, CHARTED, GALLERY, PAGE, chart_of, gallery, read_figures, split_page
from coreai_recipes.recipe.source import built_in_recipes
from coreai_recipes.report.page.gallery import gallery_of
from coreai_recipes.report.zoo import by_cell

ZOO = Path(__file__).parents[1] / "examples/zoo.yaml"
TOO_LARGE = {"gemma4-26b-a4b", "gemma4-31b"}
STALE = "run `make zoo`"


def test_the_table_of_the_page_is_of_its_figures() -> None:
    assert split_page(PAGE.read_text())[1] == gallery(read_figures()), STALE


def test_the_picture_has_a_mark_for_each_cell_that_passed_but_those_of_tiny_models() -> None:
    rows = read_figures()["rows"]
    passed = [cell for cell in by_cell(rows) if cell["passed"] and cell["bytes"] >= CHARTED]
    assert len(said(CHART.read_text())) == len(passed), STALE
    assert said(CHART.read_text()) == said(chart_of(rows)), STALE


def test_the_gallery_is_the_page_of_the_same_zoo() -> None:
    theirs, ours = GALLERY.read_text(), gallery_of(read_figures()["rows"], ZOO.stem)
    assert without_drawings(theirs) == without_drawings(ours), STALE
    assert said(theirs) == said(ours), STALE


def test_the_zoo_has_every_built_in_recipe_but_those_that_need_a_larger_machine() -> None:
    assert {*yaml.safe_load(ZOO.read_text())["recipes"]} == built_in_recipes().keys() - TOO_LARGE


def said(text: str) -> list[str]:
    """What the marks of a drawing say of themselves; how they are drawn is vl-convert's matter."""
    return re.findall(r"<title>([^<]*, coreml[^<]*|[^<]*, coreai[^<]*)</title>", text)


def without_drawings(text: str) -> str:
    return re.sub(r"<svg .*?</svg>", "", text, flags=re.DOTALL)
