"""A cluster in this process."""

from collections.abc import Iterator

import pytest
from zoos import ONE_EACH


@pytest.fixture
def inside() -> Iterator[str]:
    """The address of a worker in this process, in which what a test replaces is replaced."""
    from distributed import LocalCluster

    with LocalCluster(n_workers=1, **ONE_EACH | {"processes": False, "host": None}) as made:
        yield made.scheduler_address
