"""A bundle opened for `run` and `chat`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from coreai_recipes.generate import Model


def open_bundle(place: Path, runtime: str) -> "Model":
    """The bundle, ready to answer; that nobody proved it is said."""
    from coreai_recipes.bundle import Bundle
    from coreai_recipes.generate import open_model

    bundle = Bundle.open(place)
    model = open_model(bundle.path, bundle.manifest, runtime)
    if not bundle.report["stages"]:
        print("not verified", file=sys.stderr)
    return model
