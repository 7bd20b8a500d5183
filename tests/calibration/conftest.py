"""What tests of fits share: the tiny llama's checkpoint, and one thread."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from coreai_recipes.checkpoint import Checkpoint, open_checkpoint


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    count = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(count)


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return open_checkpoint(Path(__file__).parents[1] / "checkpoints" / "tiny-llama")
