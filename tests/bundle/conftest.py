"""A bundle of tiny-llama, built once."""

import shutil
from pathlib import Path

import pytest
from built_bundles import CHECKPOINT, NAME

from coreai_recipes.bundle import Bundle, build


@pytest.fixture(scope="module")
def first(fragments: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle that no test changes."""
    return build(NAME, CHECKPOINT, tmp_path_factory.mktemp("first"), verified=False)


@pytest.fixture
def bundle(first: Bundle, tmp_path: Path) -> Bundle:
    """A copy that a test may change."""
    shutil.copytree(first.path, tmp_path / NAME)
    return Bundle.open(tmp_path / NAME)
