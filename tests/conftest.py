"""What every test may use. This folder is on the path, so `families` and `figures` can be imported from any test."""

from collections.abc import Iterator

import pytest


@pytest.fixture
def small_tensors() -> Iterator[None]:
    """Seeded, without gradients, on one thread: waiting for a second takes longer than work this small."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with torch.no_grad():
        yield
    torch.set_num_threads(threads)
