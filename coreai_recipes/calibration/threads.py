"""Several functions at once, on threads whose own products take one each: sums are the same for any number of them."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

Given = TypeVar("Given")
Found = TypeVar("Found")


class Threads:
    """As many as torch has been given."""

    def __init__(self, pool: ThreadPoolExecutor, count: int) -> None:
        self._pool, self.count = pool, count

    def run(self, functions: Iterable[Callable[[], object]]) -> None:
        list(self.map(lambda function: function(), list(functions)))

    def map(self, function: Callable[[Given], Found], given: Sequence[Given]) -> Iterator[Found]:
        """What the function gives for each, in order."""
        return self._pool.map(function, given)

    def stream(self, function: Callable[[Given], Found], given: Iterable[Given]) -> Iterator[Found]:
        """As `map`, for what comes one after the other and is not all to be held: twice as many as there are threads
        are."""
        waiting: deque[Future[Found]] = deque()
        for each in given:
            waiting.append(self._pool.submit(function, each))
            if len(waiting) >= 2 * self.count:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


@contextmanager
def threads() -> Iterator[Threads]:
    """Torch works on one thread meanwhile, in each of these and in the caller's."""
    count = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(count, thread_name_prefix="calibration") as pool:
            yield Threads(pool, count)
    finally:
        torch.set_num_threads(count)
