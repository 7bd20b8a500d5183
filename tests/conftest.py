"""What every test may use. This folder is on the path, so `families` and `figures` can be imported from any test."""

from collections.abc import Iterator

import pytest


@pytest.fixture
def small_tensors() -> Iterator[None]:
    """No gradients and one thread: on tensors this small, waiting for a second thread takes longer than the work."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.no_grad():
        yield
    torch.set_num_threads(threads)
