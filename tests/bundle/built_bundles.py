"""A bundle of tiny-llama, and what lies in its folder."""

from pathlib import Path

CHECKPOINT = Path(__file__).parents[1] / "checkpoints/tiny-llama"


NAME = "tiny-llama"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
