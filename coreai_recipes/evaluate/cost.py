"""What one call of a function computes and reads, counted from the saved program's operations and declared types."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from coreai_recipes.evaluate import operations as _catalogue  # noqa: F401  (fills the registry)
from coreai_recipes.evaluate.counting import Sizes, padded_bytes, stored_bytes
from coreai_recipes.evaluate.graph import STATE_OPERATIONS, Graph, read_graph
from coreai_recipes.evaluate.opset import OPERATIONS, Node
from coreai_recipes.evaluate.package_reader import Package
from coreai_recipes.evaluate.traffic import Traffic


@dataclass(frozen=True)
class Cost:
    """One call of a function.

    Attributes:
        flops: additions and multiplications, a multiply-add being two; any elementwise function is one a result.
        weight_bytes: of weight.bin, as stored: each constant once, and of one that is only gathered from or sliced,
            what is taken.
        state_bytes: read and written. A slice of a state counts as the slice; an update in place as the update.
        operations: how many of each type, constants and compressed weights aside.
        result_bytes: of every operation's results, views too. What stands for a whole state is no result: it is read
            and updated in place.
        padded_bytes: the same with each last axis padded to the engine's lanes of 64 bytes (ENGINE: rule last-1).
    """

    flops: int
    weight_bytes: int
    state_bytes: int
    operations: dict[str, int]
    result_bytes: int
    padded_bytes: int


def function_costs(package: Path) -> dict[str, Cost]:
    """The cost of each function of a saved ML Program. Raises EvaluationError for what cannot be counted.

    No weight is looked at: the program says how large each is.
    """
    opened = Package(package, checked=False)
    return {name: _cost_of(read_graph(opened, name)) for name in sorted(opened.functions)}


def _cost_of(graph: Graph) -> Cost:
    sizes = Sizes(graph)
    traffic = Traffic(graph, sizes)
    flops = sum(count_flops(node, sizes) for node in graph.nodes)
    results = [
        sizes.type_of(node, result.name)
        for node in graph.nodes
        for result in node.results
        if not traffic.is_state(result.name)
    ]
    return Cost(
        flops,
        traffic.weight_bytes(),
        traffic.state_bytes,
        dict(Counter(node.type for node in graph.nodes)),
        sum(map(stored_bytes, results)),
        sum(map(padded_bytes, results)),
    )


def count_flops(node: Node, sizes: Sizes) -> int:
    """The arithmetic of one operation, as it is stated beside it; states are only read and written."""
    return 0 if node.type in STATE_OPERATIONS else OPERATIONS[node.type].flops(node, sizes)
