"""What the tests of the export share: converted fragments, and packages that are made once a session.

Under xdist the workers share one folder, so that nothing is converted by both.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
from programs import once

from coreai_recipes.export.cache import FragmentCache


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A folder of this session, the same for all its workers."""
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "export"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def cache(fragments: Path) -> FragmentCache:
    """The fragments of this session: a test that converts anew takes a cache of its own."""
    return FragmentCache(fragments)


@pytest.fixture(scope="session")
def made(shared: Path) -> Callable[[str, Callable[[Path], object]], Path]:
    """`made(name, make)`: the folder that `make(folder)` filled, once a session."""
    return lambda name, make: once(shared / name, make)


@pytest.fixture(autouse=True)
def _on_small_tensors(small_tensors: None) -> None:
    pass
