"""Checkpoints and packages of the small random families, and of the tiny Llama that was really trained."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from families import FAMILIES
from verify_cases import Export, Saved, save

from coreai_recipes.checkpoint import Checkpoint, open_checkpoint
from coreai_recipes.decoder.filling import bind_weights
from coreai_recipes.decoder.model import build_decoder
from coreai_recipes.export.cache import FragmentCache
from coreai_recipes.recipe import Recipe, load_recipe
from coreai_recipes.targets.coreml.exporter import export_package

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """On tensors this small, waiting for a second thread takes longer than the work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Saved]:
    """`saved(family)`: its recipe and a checkpoint of a small random model, written once."""
    made: dict[str, Saved] = {}

    def get(family: str) -> Saved:
        if family not in made:
            made[family] = save(FAMILIES[family](), tmp_path_factory.mktemp(family))
        return made[family]

    return get


@pytest.fixture(scope="session")
def tiny_llama() -> Saved:
    """The tiny Llama with its recipe."""
    recipe = load_recipe(REPOSITORY / "recipes" / "tiny-llama.yaml")
    return recipe, open_checkpoint(REPOSITORY / "tests" / "checkpoints" / "tiny-llama")


@pytest.fixture(scope="session")
def export(tmp_path_factory: pytest.TempPathFactory, fragments: Path) -> Export:
    """`export(recipe, checkpoint)`: the package's path. Fragments that two packages share are converted once."""
    cache = FragmentCache(fragments)

    def make(recipe: Recipe, checkpoint: Checkpoint) -> Path:
        decoder = build_decoder(recipe)
        package = tmp_path_factory.mktemp("package") / "model.mlpackage"
        export_package([decoder], bind_weights(decoder, checkpoint), package, cache)
        return package

    return make


@pytest.fixture(scope="session")
def tiny_package(tiny_llama: Saved, export: Export) -> Path:
    return export(*tiny_llama)
