"""One bundle of tiny-llama in Core AI's format, for all tests of the format."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from coreai_recipes.manifest.schema import Manifest
    from coreai_recipes.running.coreai import CoreAIProgram
    from coreai_recipes.running.program import SavedProgram

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


@pytest.fixture(scope="module")
def hosted(made: Callable[[str, Callable[[Path], object]], Path], request: pytest.FixtureRequest) -> Path:
    """tiny-llama by the overrides of the test's module, `HOSTED`, unverified."""
    from coreai_recipes import bundle

    overrides: list[str] = request.module.HOSTED

    def build(folder: Path) -> None:
        bundle.build("tiny-llama", CHECKPOINT, folder, overrides=overrides, verified=False)

    host = overrides[1].partition("=")[2]
    return made(f"tiny-llama-{host}", build) / "tiny-llama"


@pytest.fixture(scope="module")
def engine(hosted: Path) -> "CoreAIProgram":
    from coreai_recipes.running.coreai import CoreAIProgram

    return CoreAIProgram(hosted / "model.aimodel")


@pytest.fixture(scope="module")
def described(hosted: Path) -> "Manifest":
    from coreai_recipes.bundle import Bundle

    return Bundle.open(hosted).described


@pytest.fixture(scope="module")
def program(hosted: Path, described: "Manifest") -> "SavedProgram":
    """Which sessions begin on without a word: what is in its states is not seen."""
    from coreai_recipes.running.program import open_program

    return open_program(hosted, described)
