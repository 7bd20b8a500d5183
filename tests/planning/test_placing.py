"""In how many packages a build for a device has the weights, and where it has the table."""

import pytest

from coreai_recipes.decoder.model import exported_form
from coreai_recipes.decoder.stacks import build_stacks
from coreai_recipes.lint.devices import find_device
from coreai_recipes.planning import placing
from coreai_recipes.planning.choosing import choose
from coreai_recipes.planning.placing import place
from coreai_recipes.planning.settings import rules_of
from coreai_recipes.recipe import load_recipe
from coreai_recipes.recipe.schema.export import ChunkSizes
from coreai_recipes.storage.chunks import chunks_of
from coreai_recipes.storage.shorthand import with_bits

PHONE = find_device("iphone-17-pro")


def test_a_model_above_a_file_is_cut_and_stays_float16() -> None:
    recipe, choices = choose(load_recipe("qwen3-0.6b"), PHONE)
    said = {choice.field: choice for choice in choices}
    assert said["compress"].words == "compress: float16: 1.19 GB of weights fit in 2 packages"
    assert said["export.chunks"].words == (
        "export.chunks: auto: 2 packages of 0.60 GB, 0.59 GB; one would have 1.19 GB, "
        "above the 0.95 GB that a file may have (pkg-size)"
    )
    assert (recipe.compress, recipe.export.chunks) == (None, "auto")
    assert "pkg-size" not in {finding.id for finding in rules_of(recipe, PHONE).findings}


def test_a_tied_table_that_two_packages_would_hold_goes_to_the_host() -> None:
    placed = place(load_recipe("qwen3-0.6b"), PHONE, ())
    said = placed.choices[-1]
    assert (said.field, said.value, placed.recipe.export.table) == ("export.table", "host", "host")
    assert said.why == "two packages would hold it, which is tied to the head: 0.31 GB of weights less"


def test_a_table_goes_to_the_host_from_the_size_that_the_rule_names() -> None:
    (said,) = place(load_recipe("gemma2-2b"), find_device("M5"), ()).choices  # no limit of a file is known there
    assert said.words == (
        "export.table: host: 1.18 GB inside the program, and from 0.50 GB on a host should keep it (embed-in)"
    )
    assert not place(load_recipe("tiny-llama"), find_device("M1"), ()).choices


def test_a_second_copy_stays_where_the_file_of_a_host_is_larger(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host reads no palettes."""
    monkeypatch.setattr(placing, "file_limit", lambda device: 10_000_000 + 60_000_000)
    placed = place(with_bits(load_recipe("smollm2-135m"), 4), PHONE, ())
    assert placed.recipe.export.table == "package"
    assert placed.choices[-1].why.startswith("the host's file of it would take 56.6 MB, in all ")


def test_packages_follow_the_limit_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placing, "file_limit", lambda device: 10_000_000 + 150_000_000)
    recipe = place(load_recipe("smollm2-135m"), PHONE, ()).recipe
    assert recipe.export.chunks == ChunkSizes(max_bytes=150_000_000)
    sizes = [chunk.parameters.bytes for chunk in chunks_of(build_stacks(recipe, exported_form(recipe)))]
    assert len(sizes) == 2
    assert max(sizes) <= 150_000_000


def test_what_set_and_the_recipe_say_of_packages_is_kept() -> None:
    by_set = ("export.chunks=3", "export.table=package")
    for recipe, overrides in ((load_recipe("qwen3-0.6b", by_set), by_set), (load_recipe("qwen3-0.6b", by_set), ())):
        found, choices = choose(recipe, PHONE, overrides)
        assert (found.export.chunks, found.export.table) == (3, "package")
        kept = {choice.field: choice.why for choice in choices}
        assert kept["export.chunks"] == kept["export.table"] == "kept, as --set or the recipe says"


def test_caches_are_handed_on_where_the_layers_that_share_them_are_larger_than_a_file() -> None:
    """Layers 13 to 34 of Gemma 4 E2B share caches: they fit a package at 4 bits, not at 8, which was passed over."""
    recipe, choices = choose(load_recipe("gemma4"), PHONE)
    said = {choice.field: choice for choice in choices}
    assert said["compress"].value == "--bits 8"
    assert (recipe.export.cut.share, said["export.chunks"].value) == ("pass", "{share: pass}")
    assert said["export.chunks"].why == (
        "3 packages of 0.77 GB, 0.78 GB, 0.73 GB; one would have 2.28 GB, above the 0.95 GB that a file may have "
        "(pkg-size); with `share: owner`, export.chunks: auto: 940000000 is less than layers 13 to 34, which share "
        "caches (`share: pass` hands them on), takes; the smallest that can be is 1380360128"
    )
    fitting = place(with_bits(load_recipe("gemma4"), 4), PHONE, ())
    assert fitting.choices[0].words.startswith("export.chunks: auto: 3 packages of 0.25 GB, 0.69 GB, 0.30 GB; ")


def test_what_cannot_be_cut_stays_one_package_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placing, "file_limit", lambda device: 10_000_000 + 20_000_000)
    placed = place(with_bits(load_recipe("gemma4"), 8), PHONE, ())
    assert placed.recipe.export.chunks == 1
    assert placed.why_not.startswith("above the 0.03 GB that a file may have (pkg-size), and cannot be cut: ")
    assert "export.chunks.max_bytes: 20000000 is less than " in placed.why_not


def test_a_host_that_loads_one_package_has_one() -> None:
    recipe = load_recipe("llama-3.2-1b", ["export.host=anemll"])
    placed = place(recipe, PHONE, ())
    assert (placed.recipe.export.chunks, placed.recipe.export.table) == (1, "package")
    assert placed.why_not.endswith("and cannot be cut: anemll loads one package")


def test_a_kept_form_that_is_too_large_says_so() -> None:
    recipe = with_bits(load_recipe("llama-3.2-1b", ["export.host=anemll"]), 8)
    form = next(choice for choice in choose(recipe, PHONE)[1] if choice.field == "compress")
    assert form.why.startswith("kept, as the recipe or --bits says; 1.24 GB in a package are above the 0.95 GB")
