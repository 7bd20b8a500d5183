"""What a plan says that a call multiplies, against the matrix products of the saved program, to the last one."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from families import FAMILIES, gemma4
from family_configs import all_configs
from gemma4_drafts import gemma4_draft
from programs import RECIPES, export, random_weights

from coreai_recipes.decoder.draft import Draft
from coreai_recipes.decoder.model import build_decoder
from coreai_recipes.decoder.stacks import build_stacks
from coreai_recipes.evaluate.cost import count_flops
from coreai_recipes.evaluate.counting import Sizes
from coreai_recipes.evaluate.graph import read_graph
from coreai_recipes.evaluate.package_reader import Package
from coreai_recipes.export.cache import FragmentCache
from coreai_recipes.planning.workload import count_workloads, saved_by_sharing
from coreai_recipes.recipe.importing.assembling import recipe_from_config
from coreai_recipes.recipe.schema import Recipe

pytestmark = pytest.mark.usefixtures("small_tensors")


def with_experts_all() -> Recipe:
    data = gemma4().recipe.model_dump()
    for kind in data["model"]["kinds"].values():
        kind["experts"]["decode"] = "all"
    return Recipe.model_validate(data)


CASES: dict[str, Callable[[], Recipe]] = {
    "every bias": RECIPES["full"],
    "windows": RECIPES["sliding"],
    "a score": RECIPES["mixture"],
    "biases of q, k and v": lambda: FAMILIES["qwen2"]().recipe,
    "experts of heads": lambda: recipe_from_config(all_configs()["jetmoe-unusual"], "heads").recipe,
    "gemma 4": lambda: gemma4().recipe,
    "gemma 4, all experts": with_experts_all,
    "gemma 4, plain": lambda: gemma4(per_layer=False, sharing=False, k_eq_v=False, experts=False).recipe,
    "gemma 4 with a draft": lambda: gemma4_draft(gemma4(experts=False))[0],
    "gemma 4 with a draft of an ordered vocabulary": lambda: gemma4_draft(gemma4(vocab_size=128), clusters=16)[0],
}


PRODUCTS = {"conv", "einsum", "linear", "matmul", "scaled_dot_product_attention"}


def products(package: Path) -> dict[str, int]:
    """Floating point operations of a program's matrix products, by function."""
    opened = Package(package, checked=False)
    graphs = {name: read_graph(opened, name) for name in opened.functions}
    return {
        name: sum(count_flops(node, Sizes(graph)) for node in graph.nodes if node.type in PRODUCTS)
        for name, graph in graphs.items()
    }


@pytest.mark.parametrize("case", CASES)
def test_a_plan_counts_the_products_of_the_program(case: str, cache: FragmentCache, tmp_path: Path) -> None:
    recipe = CASES[case]()
    draft = Draft.build(recipe) if recipe.draft else None
    weights = random_weights(recipe)
    weights |= {f"draft.{name}": torch.zeros(p.shape) for name, p in draft.named_parameters()} if draft else {}
    export(recipe, tmp_path / "model.mlpackage", cache, weights)
    planned: dict[str, int] = {}
    for workload in count_workloads(build_stacks(recipe)):
        for function, flops in workload.flops.items():
            planned[function] = planned.get(function, 0) + flops
    assert planned == products(tmp_path / "model.mlpackage")


def test_shared_caches_save_what_their_layers_would_do_for_the_other_tokens() -> None:
    recipe = gemma4(experts=False).recipe
    decoder = build_decoder(recipe)
    prefill = recipe.export.functions.prefill
    shared = [work.flops["prefill"] for work in count_workloads([decoder]) if work.what.endswith("_shared`")]
    assert len(shared) == 2
    assert saved_by_sharing(decoder) == (prefill - 1) * sum(shared)
    assert saved_by_sharing(build_decoder(gemma4(sharing=False).recipe)) == 0
