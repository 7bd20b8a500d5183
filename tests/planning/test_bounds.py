"""What a device makes of a recipe: bytes of a call as its package has them, bounds only where a rate was measured."""

import json
from pathlib import Path

import pytest

from coreai_recipes.decoder.model import Decoder, exported_form
from coreai_recipes.decoder.stacks import build_stacks
from coreai_recipes.lint.devices import devices, find_device
from coreai_recipes.manifest.reading import read_manifest
from coreai_recipes.planning.bounds import Fit, decode_weights, file_limit, fit_of
from coreai_recipes.recipe import Recipe, load_recipe


def decoder_of(recipe: Recipe) -> Decoder:
    return next(stack for stack in build_stacks(recipe, exported_form(recipe)) if isinstance(stack, Decoder))


def fitted(recipe: Recipe, device: str) -> Fit:
    return fit_of(recipe, find_device(device))


@pytest.mark.parametrize("name", ["tiny-llama", "gemma4-tiny"])
def test_a_token_reads_the_bytes_that_its_package_counts(name: str, request: pytest.FixtureRequest) -> None:
    bundle: Path = request.getfixturevalue("tiny_bundle" if name == "tiny-llama" else "gemma4_tiny_bundle")
    functions = read_manifest(bundle)["packages"][-1]["functions"]
    counted = functions["decode"]["cost"]
    planned = fitted(load_recipe(name), "M5")
    assert planned.token_weights == pytest.approx(counted["weight_bytes"], rel=0.02)
    # a package reads the keys and values that it multiplies, and writes a row
    assert planned.token_states == pytest.approx(counted["state_bytes"], rel=0.05)


def test_of_experts_a_token_reads_its_own_and_of_an_untied_table_a_row() -> None:
    routed = load_recipe("gemma4-26b-a4b")
    every = load_recipe("gemma4-26b-a4b", [f"model.kinds.{kind}.experts.decode=all" for kind in ("sliding", "full")])
    each = 2 * 3 * 2816 * 704
    assert decode_weights(decoder_of(every)) - decode_weights(decoder_of(routed)) == 30 * (128 - 8) * each
    tied, untied = (load_recipe("tiny-llama", [f"model.head.tied={word}"]) for word in ("true", "false"))
    width = untied.model.hidden_size
    assert decode_weights(decoder_of(untied)) - decode_weights(decoder_of(tied)) == 2 * width


def test_bounds_are_of_measured_rates_and_nothing_else() -> None:
    recipe = load_recipe("qwen3-0.6b")
    fast, unknown = (fitted(recipe, id_) for id_ in ("iphone-17-pro", "iphone-17"))
    assert fast.most_tokens_per_second == pytest.approx(42e9 / 1_192_230_912, rel=1e-3)
    assert [bound.seconds for bound in fast.first_token][2] == pytest.approx(4 * 1_192_230_912 / 42e9, rel=1e-3)
    assert (unknown.most_tokens_per_second, unknown.first_token) == (None, ())
    assert unknown.unmeasured[0] == "the rate at which its engine reads weights: no bound on tokens/s"


def test_a_bound_holds_for_what_was_claimed_on_the_device() -> None:
    """CoreML-LLM's figure for Gemma 4 E2B at 4 bits on an iPhone 17 Pro: a bound below it would be wrong."""
    planned = fitted(load_recipe("gemma4", ["compress.default={kind: palettize, bits: 4}"]), "iphone-17-pro")
    assert planned.most_tokens_per_second is not None
    assert planned.most_tokens_per_second >= 34.2


def test_a_prefill_of_products_is_bounded_by_them() -> None:
    planned = fitted(load_recipe("qwen3-0.6b", ["export.functions.prefill=256"]), "M1")
    assert {bound.by.split(", ")[1] for bound in planned.first_token} == {"products"}


def test_the_limit_of_a_file_is_the_rules_and_a_phones() -> None:
    assert {device.chip.group for device in devices().values() if file_limit(device)} == {"phones"}
    assert file_limit(find_device("iphone-15")) == 950_000_000


def test_a_plan_on_a_device_is_one_document(run: object) -> None:
    status, out, _ = run("plan", "tiny-llama", "--device", "m1-max", "--json")  # type: ignore[operator]
    document = json.loads(out)
    assert status == 0
    assert document["fit"]["device"] == "m1-max"
    assert {"mends", "choices", "findings", "crossings"} <= document.keys()
    assert json.loads(run("plan", "tiny-llama", "--json")[1])["fit"] is None  # type: ignore[operator]
