"""What a bundle holds for the host of another project, beside its package."""

import shutil
from pathlib import Path

from coreai_recipes.hosts import anemll, coreai_models, coreai_models_dynamic
from coreai_recipes.recipe.host_form import anemll_form, dynamic_form, static_form
from coreai_recipes.recipe.schema import Recipe


def files_for_host(recipe: Recipe, package: str, end_tokens: list[int]) -> dict[str, str]:
    """The text by name of the files that tell it of the package; none where a bundle is for no such host."""
    match recipe.export.host:
        case "anemll":
            return anemll.files_of(anemll_form(recipe), package, end_tokens)
        case "coreai-models":
            return coreai_models.files_of(static_form(recipe), package)
        case "coreai-models-dynamic":
            return coreai_models_dynamic.files_of(dynamic_form(recipe), package)
    return {}


def copy_tokenizer(recipe: Recipe, folder: Path) -> None:
    """Put copies of the tokenizer's files, which are all that `folder` holds, where the host looks for them."""
    if recipe.export.host in ("coreai-models", "coreai-models-dynamic"):
        files = sorted(folder.iterdir())
        inner = folder / coreai_models.TOKENIZER
        inner.mkdir()
        for file in files:
            shutil.copyfile(file, inner / file.name)
