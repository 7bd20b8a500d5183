"""What the tests of the assets for Apple's runner of coreai-models have in common."""

import json
from collections.abc import Sequence
from pathlib import Path

from coreai_recipes.checkpoint import open_checkpoint
from coreai_recipes.decoder.filling import bind_stacks
from coreai_recipes.decoder.model import exported_form
from coreai_recipes.decoder.stacks import build_stacks
from coreai_recipes.export.cache import FragmentCache
from coreai_recipes.hosts.coreai_models import METADATA, Settings
from coreai_recipes.recipe import load_resolved
from coreai_recipes.targets.coreai.exporter import export_package

CHECKPOINT = Path(__file__).parents[2] / "checkpoints/tiny-llama"
TOKENS = [(37 * index + 5) % 512 for index in range(96)]


def hosted_as(host: str) -> list[str]:
    return ["export.format=coreai", f"export.host={host}", "export.context=96"]


def settings_of(hosted: Path) -> Settings:
    return Settings.read(json.loads((hosted / METADATA).read_text()))


def built(folder: Path, cache: FragmentCache, overrides: Sequence[str]) -> Path:
    """The asset of tiny-llama alone."""
    recipe, sources = load_resolved("tiny-llama", overrides).recipe, {"model": open_checkpoint(CHECKPOINT)}
    stacks, asset = build_stacks(recipe, exported_form(recipe)), folder / "model.aimodel"
    export_package(stacks, bind_stacks(stacks, sources), asset, cache)
    return asset
