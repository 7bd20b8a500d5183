"""A bundle found and opened for `run` and `chat`."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from coreai_recipes.errors import BundleError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from coreai_recipes.generate import LanguageModel
    from coreai_recipes.manifest.schema import Manifest

BUILT = Path("dist")  # where `recipe build` writes


def find_bundle(word: str) -> Path:
    """The folder of that path, else the bundle of that name in dist/. Raises BundleError when there is neither, with
    the nearest name."""
    path = Path(word)
    if os.path.lexists(path):
        return path
    if _is_bundle(BUILT / word):
        return BUILT / word
    from coreai_recipes.recipe.nearest import nearest
    from coreai_recipes.recipe.source import built_in_recipes

    built = [each.name for each in BUILT.iterdir() if _is_bundle(each)] if BUILT.is_dir() else []
    close = nearest(path.name, built)
    if close:
        hint = f"did you mean `{close}`?"
    elif word in built_in_recipes():
        hint = f"this is a recipe; build it first: `recipe build {word}`"
    else:
        hint = f"dist/ has: {', '.join(sorted(built)[:16])}" if built else "build one first: `recipe build RECIPE`"
    raise BundleError(f"{word}: no such bundle, here or in dist/\n  {hint}")


def open_bundle(word: str, runtime: str, adapter: str | None = None) -> "LanguageModel":
    """The bundle with one of its adapters or none, ready to answer. What is loaded is said on a terminal, and that
    nobody proved it everywhere."""
    return _open(word, runtime, lambda described: [adapter])[0]


def open_with_adapters(word: str, runtime: str) -> "list[LanguageModel]":
    """As `open_bundle`: the bundle alone, and with each of its adapters, over one copy of the package."""
    return _open(word, runtime, lambda described: [None, *(described.adapters.files if described.adapters else ())])


def _open(word: str, runtime: str, adapters_of: "Callable[[Manifest], Sequence[str | None]]") -> "list[LanguageModel]":
    from coreai_recipes.bundle import Bundle
    from coreai_recipes.running.program import choose_runtime

    bundle = Bundle.open(find_bundle(word))
    runtime = choose_runtime(runtime, bundle.described.package_format)
    if sys.stderr.isatty():
        engine = {"coreml": "Core ML", "coreai": "Core AI"}.get(runtime, "the evaluator")
        print(f"loading {bundle.path}: {bundle.bytes / 1e6:,.1f} MB, run by {engine}", file=sys.stderr)
    from coreai_recipes.generate import open_models

    models = open_models(bundle.path, bundle.manifest, runtime, adapters_of(bundle.described))
    if not bundle.report["stages"]:
        print("not verified", file=sys.stderr)
    return models


def _is_bundle(path: Path) -> bool:
    from coreai_recipes.manifest.reading import MANIFEST

    return (path / MANIFEST).is_file()
