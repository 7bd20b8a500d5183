"""Folders that are sealed as a build seals its bundle, for the tests of what may be done to one."""

import json
from hashlib import sha256
from pathlib import Path
from typing import Any


def seal(folder: Path, **manifest: Any) -> None:
    """Write recipe.yaml, where there is none, and a manifest that lists every file of `folder`."""
    recipe = folder / "recipe.yaml"
    if not recipe.exists():
        recipe.write_text("recipe: 1\n")
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "manifest.json")
    sealed = {
        path.relative_to(folder).as_posix(): {
            "bytes": path.stat().st_size,
            "sha256": sha256(path.read_bytes()).hexdigest(),
        }
        for path in files
    }
    document = {
        "format": 1,
        "name": folder.name.strip("."),
        "recipe_sha256": sealed["recipe.yaml"]["sha256"],
        "files": sealed,
        **manifest,
    }
    (folder / "manifest.json").write_text(json.dumps(document))
