"""Hostile inputs on every entry point: no error but a user's, below 1 GB, below 5 s. `make fuzz` tries many."""

from collections.abc import Iterator
from typing import Any

import hostile
import pytest
import templates
from hypothesis.strategies import SearchStrategy, integers
from trying import Worker, find_faults

INPUTS: dict[str, tuple[SearchStrategy[Any], int]] = {
    "recipe": (hostile.recipes(), 40),
    "override": (hostile.overrides(), 40),
    "config": (hostile.config_files(), 60),
    "safetensors": (hostile.safetensors_files(), 40),
    "index": (hostile.index_files(), 20),
    "gguf": (hostile.gguf_files(), 40),
    "template": (templates.templates(), 60),
    "bundle": (integers(0, 2**32 - 1), 60),
}


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    """One process for all of them."""
    worker = Worker()
    yield worker
    worker.close()


@pytest.mark.parametrize("name", INPUTS)
def test_a_hostile_input_is_refused_or_read_within_bounds(name: str, worker: Worker) -> None:
    inputs, examples = INPUTS[name]
    faults = find_faults(worker, name, inputs, examples)
    assert not faults, faults


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("raises", "ZeroDivisionError"),
        ("is_slow", "s of the processor are over"),
        ("is_large", " MB"),
        ("dies", "status 3"),
    ],
)
def test_a_fault_of_each_sort_is_seen(name: str, said: str) -> None:
    worker = Worker(cold=True)
    verdict, reason, _, _ = worker.attempt(name, None)
    worker.close()
    assert verdict == "fault"
    assert said in reason
