"""The folder X.aimodel: the program with its weights, the program's digest, and what is said of both."""

import json
import mmap
from contextlib import suppress
from pathlib import Path
from typing import Any

SUFFIX = ".aimodel"
PROGRAM, HASH, METADATA = "main.mlirb", "main.hash", "metadata.json"
ASSET_VERSION = "2.0"


def blob_name(parameter: str, operand: str) -> str:
    """What the blob of a parameter's part is called, the only one where `operand` is empty."""
    return "_".join(filter(None, (parameter.replace(".", "_"), operand)))


def places_in(asset: Path) -> dict[str, tuple[int, int]]:
    """Where each blob of an asset's program begins, and its bytes, by its name."""
    from coreai_recipes.aimodel.bytecode import Bytecode

    with (asset / PROGRAM).open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        opened = Bytecode(whole := memoryview(data))
        found = opened.places
        del opened
        with suppress(BufferError):
            whole.release()
    return found


def write_around(folder: Path, digest: bytes, facts: dict[str, Any]) -> None:
    """Write what lies beside a program whose sha256 is `digest`: nothing of it says when it was written."""
    (folder / HASH).write_bytes(digest)
    (folder / METADATA).write_text(
        json.dumps({"assetVersion": ASSET_VERSION, **facts}, indent=2, sort_keys=True) + "\n"
    )
