"""What a build for a device chooses, and the setting that mends a rule."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from coreai_recipes.lint.devices import find_device
from coreai_recipes.planning.choosing import choose
from coreai_recipes.planning.mending import mends
from coreai_recipes.planning.placing import Choice
from coreai_recipes.planning.settings import rules_of, with_setting
from coreai_recipes.recipe import Recipe, load_recipe
from coreai_recipes.storage.shorthand import with_bits
from tests.planning.home_table import BEGIN, END, HOMES, PAGE, reports, table


def chosen(choices: tuple[Choice, ...]) -> dict[str, str]:
    return {choice.field: choice.value for choice in choices}


def test_every_built_in_recipe_has_a_home() -> None:
    from coreai_recipes.recipe import built_in_recipes

    assert HOMES.keys() == set(built_in_recipes())


def test_the_page_has_the_homes_as_they_are(tmp_path: Path) -> None:
    """`python -m tests.planning.home_table` writes it; a fixture's report is on no page, one with a source is."""
    text = PAGE.read_text()
    assert text[text.index(BEGIN) + len(BEGIN) : text.index(END)].strip() == table()
    said = {
        "manifest_sha256": "0" * 64, "chip": "M1", "os_build": "24A435", "date": "2026-11-28", "source": "a test",
        "functions": {"decode": {"median_ms": 20.0}},
    }  # fmt: skip
    folder = tmp_path / "tiny-llama"
    folder.mkdir()
    for device in ("example", "M1"):
        (folder / f"{device}.json").write_text(json.dumps({**said, "device": device}))
    (found,) = reports(tmp_path)["tiny-llama"]
    assert found.device == "M1"


@pytest.mark.parametrize("name", HOMES)
def test_a_built_in_recipe_breaks_no_rule_where_it_is_at_home(name: str) -> None:
    device, bits = HOMES[name]
    recipe = load_recipe(name) if bits is None else with_bits(load_recipe(name), bits)
    errors = [finding for finding in rules_of(recipe, find_device(device)).findings if finding.level == "error"]
    assert not errors, errors[0]


def test_weights_take_the_least_lossy_form_that_fits() -> None:
    recipe, choices = choose(load_recipe("qwen3-0.6b"), find_device("iphone-17-pro"), ["export.chunks=1"])
    said = {choice.field: choice for choice in choices}
    assert said["compress"].value == "--bits 8"
    assert said["compress"].why == (
        "0.60 GB of weights fit; float16 would take 1.19 GB, above the 0.95 GB that a file may have (pkg-size)"
    )
    assert recipe.compress is not None
    assert recipe.export.device == "iphone-17-pro"
    assert said["export.functions.prefill"].why == (
        "a call costs its real tokens, so the widest is best; 128 would break state-rows"
    )
    smaller = chosen(choose(load_recipe("smollm2-135m"), find_device("iphone-13"))[1])
    assert smaller["compress"] == "float16"


def test_what_set_and_the_recipe_say_of_forms_is_kept() -> None:
    compressed = with_bits(load_recipe("smollm2-135m"), 6)
    recipe, choices = choose(compressed, find_device("M1"), ["export.functions.prefill=16", "export.mlp_layout=row"])
    assert recipe.compress == compressed.compress
    assert recipe.export.functions.prefill == 64  # as it was: the overrides are in the recipe already
    assert recipe.export.mlp_layout == "row"
    assert chosen(choices)["export.functions.prefill"] == "64"


def test_a_layout_is_chosen_for_the_rule_that_it_no_longer_breaks() -> None:
    wide = load_recipe("tiny-llama", ["export.functions.prefill=64"])
    recipe, choices = choose(wide, find_device("M1"), ["export.functions.prefill=64"])
    assert recipe.export.mlp_layout == "8x8"
    assert next(choice for choice in choices if choice.field == "export.mlp_layout").why == "no longer conv-8x8"
    newer, _ = choose(wide, find_device("M5"))
    assert newer.export.mlp_layout == "row"


def test_a_padded_prefill_is_as_wide_as_answers_soonest() -> None:
    choices = choose(load_recipe("tiny-llama"), find_device("M1"))[1]
    why = next(choice.why for choice in choices if choice.field == "export.functions.prefill")
    assert why.startswith("a call costs its padded length, and prompts of 16, 64, 256, 1024 tokens take least: ")
    unknown = choose(load_recipe("smollm2-135m"), find_device("M2"))[1]
    assert (
        "no rate of Mac or iPad with M2 was measured" in {c.field: c.why for c in unknown}["export.functions.prefill"]
    )


def test_a_setting_mends_what_its_rule_names_and_breaks_nothing_else() -> None:
    device = find_device("M1")
    long = load_recipe("tiny-llama", ["export.context=20000", "export.attention_layout=last"])
    found = mends(long, device, rules_of(long, device))
    assert found["width-16k"] == "--set export.context=16320"
    wide = load_recipe("tiny-llama", ["export.functions.prefill=128", "export.context=512"])
    assert mends(wide, device, rules_of(wide, device))["state-rows"] == "--set export.functions.prefill=64"
    mended = with_setting(wide, ("functions.prefill", 64))
    assert "state-rows" not in {finding.id for finding in rules_of(mended, device).findings}


def test_what_no_setting_mends_is_said_so() -> None:
    device = find_device("iphone-17-pro")
    recipe: Recipe = load_recipe("qwen3-0.6b")
    found = mends(recipe, device, rules_of(recipe, device))
    assert found["pkg-size"] == "--set export.chunks=auto"
    assert found.keys() == {"pkg-size"}
    shared: Recipe = load_recipe("gemma4")
    found = mends(shared, device, rules_of(shared, device))
    assert found["state-count"] == "--set export.cache=functional"
    assert found["state-rows"] is None


def test_what_cannot_be_cut_is_mended_by_a_smaller_form() -> None:
    """`--set export.chunks=auto` was named, which the recipe's own rules refuse with this host."""
    device, recipe = find_device("iphone-17-pro"), load_recipe("qwen3-0.6b", ["export.host=anemll"])
    assert mends(recipe, device, rules_of(recipe, device))["pkg-size"] == "--bits 8"


def test_layers_that_share_caches_are_cut_by_handing_them_on() -> None:
    """Layers 13 to 34 of Gemma 4 E2B share caches, and take 2.76 GB in float16."""
    device, recipe = find_device("iphone-17-pro"), load_recipe("gemma4", ["export.table=host"])
    assert mends(recipe, device, rules_of(recipe, device))["pkg-size"] == "--set 'export.chunks={share: pass}'"
    smaller = with_bits(recipe, 4)
    assert mends(smaller, device, rules_of(smaller, device))["pkg-size"] == "--set export.chunks=auto"


def test_no_device_is_chosen_for_another_format(run: Callable[..., tuple[int, str, str]]) -> None:
    """`plan` ended with a fault of ours."""
    status, _, said = run("plan", "tiny-llama", "--set", "export.format=coreai", "--device", "M1")
    assert (status, said.strip()) == (2, "--device M1: the rules of a device are of Core ML's programs: leave it out")
