"""The ranges of a program's values, gathered call by call."""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from coreai_recipes.evaluate.graph import STATE_OPERATIONS, Graph
from coreai_recipes.manifest.audit import Value

SMALLEST_NORMAL = 2.0**-14
# The elements of others, in another place: they are not looked at again, and states are large.
MOVES = frozenset(STATE_OPERATIONS) | {
    "concat", "expand_dims", "identity", "reshape", "slice_by_index", "slice_by_size", "slice_update", "split",
    "squeeze", "stack", "tile", "transpose",
}  # fmt: skip


@dataclass
class Range:
    """One float16 value over all calls. `flushed` is the sum of the squares of its subnormals."""

    operation: str
    largest: float = 0.0
    least: float = math.inf
    count: int = 0
    subnormals: int = 0
    flushed: float = 0.0

    def add(self, value: Tensor) -> None:
        sizes = value.abs()
        self.largest = max(self.largest, float(sizes.amax()))
        self.count += value.numel()
        least = float(sizes.amin())
        if least < SMALLEST_NORMAL:
            small = torch.where(sizes < SMALLEST_NORMAL, sizes, 0.0)
            self.subnormals += int(torch.count_nonzero(small))
            self.flushed += float(small.square().sum())
            least = float(torch.where(sizes > 0, sizes, math.inf).amin())
        self.least = min(self.least, least)

    @property
    def subnormal_share(self) -> float:
        return self.subnormals / self.count if self.count else 0.0

    @property
    def flushed_psnr_db(self) -> float:
        """The PSNR of the value when its subnormals are taken for 0."""
        if not self.flushed or not self.largest:
            return math.inf
        return 20 * math.log10(self.largest) - 10 * math.log10(self.flushed / self.count)

    def to_value(self) -> Value:
        least = 0.0 if math.isinf(self.least) else self.least
        return Value(
            operation=self.operation,
            largest=_figures(self.largest),
            least=_figures(least),
            subnormal=_figures(self.subnormal_share),
        )


@dataclass
class Ranges:
    """By function and value. `note` is what `run_call` tells."""

    graphs: dict[str, Graph]
    found: dict[str, dict[str, Range]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, graph in self.graphs.items():
            self.found[name] = {
                result.name: Range(node.type)
                for node in graph.nodes
                for result in node.results
                if result.element_type == "float16" and node.type not in MOVES
            }

    def note(self, function: str, name: str, value: Tensor) -> None:
        found = self.found[function].get(name)
        if found is None:
            return
        if not math.isfinite(value.sum()):
            value = value[value.isfinite()]  # a mask's -inf is no range
        if value.numel():
            found.add(value)

    def values(self, function: str) -> dict[str, Value]:
        """What audit.json says of a function: moved elements have the range of those that they were."""
        known: dict[str, Value] = {}
        for node in self.graphs[function].nodes:
            sources = [known[s] for key in ("x", "values") for s in node.operands.get(key, ()) if s in known]
            for result in node.results:
                found = self.found[function].get(result.name)
                if found is not None and found.count:
                    known[result.name] = found.to_value()
                elif node.type in MOVES and len(sources) == 1:
                    known[result.name] = sources[0].model_copy(update={"operation": node.type})
        return known


def _figures(value: float) -> float:
    """Four significant digits: more say nothing, and differ from one processor to the next."""
    return float(f"{value:.4g}")
