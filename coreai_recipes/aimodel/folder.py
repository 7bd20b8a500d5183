"""The folder X.aimodel: the program with its weights, the program's digest, and what is said of both."""

import json
from pathlib import Path
from typing import Any

SUFFIX = ".aimodel"
PROGRAM, HASH, METADATA = "main.mlirb", "main.hash", "metadata.json"
ASSET_VERSION = "2.0"


def write_around(folder: Path, digest: bytes, facts: dict[str, Any]) -> None:
    """Write what lies beside a program whose sha256 is `digest`: nothing of it says when it was written."""
    (folder / HASH).write_bytes(digest)
    (folder / METADATA).write_text(
        json.dumps({"assetVersion": ASSET_VERSION, **facts}, indent=2, sort_keys=True) + "\n"
    )
