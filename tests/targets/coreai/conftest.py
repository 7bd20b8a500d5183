"""One bundle of tiny-llama in Core AI's format, for all tests of the format."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

CHECKPOINT = Path(__file__).parents[2] / "checkpoints/tiny-llama"

if find_spec("coreai") is None:  # the extra, which has no wheel for every system
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="session")
def bundle(made: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    """Built and verified."""
    from coreai_recipes import bundle

    def build(folder: Path) -> None:
        bundle.build("tiny-llama", CHECKPOINT, folder, overrides=["export.format=coreai"])

    return made("tiny-llama-coreai", build) / "tiny-llama"
