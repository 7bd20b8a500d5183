"""transformers asked for a checkpoint's tokenizer in a process of its own, which imports no torch."""

import sys
import tempfile
from pathlib import Path

from coreai_recipes.child_process import command_of


def command_for(path: Path, source: str | None) -> list[str]:
    """What prints the tokenizer of the checkpoint at `path`, as `kept_tokenizer` packs it."""
    return command_of(__name__, "main", str(path), source or "")


def main(path: str, source: str) -> None:
    """Print the files that `write_tokenizer` writes."""
    sys.modules["torch"] = None  # type: ignore[assignment]  # "it is missing": no tokenizer computes with it
    from coreai_recipes.checkpoint.kept_tokenizer import pack
    from coreai_recipes.checkpoint.safetensors import SafetensorsCheckpoint

    checkpoint = SafetensorsCheckpoint(path, source=source or None)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint.write_tokenizer(Path(folder))
        sys.stdout.buffer.write(pack(Path(folder), checkpoint.folder()))
