"""The kinds of all layers, one by one -> `layers` as a person writes it. A leaf."""

from collections.abc import Sequence
from typing import Any

LONGEST_PATTERN = 64


def shortest_layers(kinds: Sequence[str]) -> list[Any]:
    """The shortest list of names and `{repeat, of}` that stands for `kinds`; of equals the one with fewest entries."""
    count = len(kinds)
    # from each layer on: what it costs to write the rest, and how the first entry of that is written
    best: list[tuple[tuple[int, int], int, int]] = [((0, 0), 0, 0)] * (count + 1)
    for start in range(count - 1, -1, -1):
        options = []
        for size in range(1, min(LONGEST_PATTERN, count - start) + 1):
            pattern, repeats = kinds[start : start + size], 1
            while kinds[start + repeats * size : start + (repeats + 1) * size] == pattern:
                repeats += 1
            for times in {1, repeats}:
                rest = best[start + times * size][0]
                cost = size if (times, size) == (1, 1) else size + 1
                options.append(((rest[0] + cost, rest[1] + 1), size, times))
        best[start] = min(options)
    entries: list[Any] = []
    start = 0
    while start < count:
        _, size, times = best[start]
        pattern = list(kinds[start : start + size])
        entries += pattern if times == 1 else [{"repeat": times, "of": pattern}]
        start += size * times
    return entries
