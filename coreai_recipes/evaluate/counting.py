"""What an operation computes, reads and writes, in the words in which it is stated where the operation is defined."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from coreai_recipes.evaluate.constants import Constant
from coreai_recipes.evaluate.element_types import ELEMENT_TYPES, TensorType
from coreai_recipes.evaluate.errors import EvaluationError

if TYPE_CHECKING:
    from coreai_recipes.evaluate.graph import Graph
    from coreai_recipes.evaluate.opset import Node

LANE_BYTES = 64
SOFTMAX = 5  # for an element: largest, difference, exponential, sum, quotient
# Additions, multiplications, comparisons and functions, a multiply-add being two.
Flops = Callable[["Node", "Sizes"], int]
# Of x an operation reads all, or nothing where its result is the same elements under another shape, or as many elements
# as it gives.
Reads = Literal["all", "nothing", "taken"]


class Sizes:
    """Types of the operands and results of nodes, every size known."""

    def __init__(self, graph: "Graph") -> None:
        self._graph = graph

    def constant(self, source: str | Constant) -> Constant | None:
        """The constant that an operand is bound to, or None where the run computes it."""
        return self._graph.constants.get(source) if isinstance(source, str) else source

    def type_of(self, node: "Node", source: str | Constant) -> TensorType:
        found = self.constant(source)
        if found is not None:
            return TensorType(found.element_type, found.shape)
        name = str(source)
        kind = self._graph.types[name] if name in self._graph.types else self._graph.states[name]
        if -1 in kind.shape:
            raise EvaluationError(f"{node.type} {node.name}: a size that is only known at run time cannot be counted")
        return kind

    def operand(self, node: "Node", key: str) -> TensorType:
        return self.type_of(node, node.operands[key][0])

    def result(self, node: "Node") -> TensorType:
        return self.type_of(node, node.results[0].name)

    def parameter(self, node: "Node", key: str) -> int:
        """A constant number, 0 where it is not given."""
        if not node.operands.get(key):
            return 0
        found = self.constant(node.operands[key][0])
        if found is None:
            raise EvaluationError(f"{node.type} {node.name}: {key} is computed by the program and cannot be counted")
        return int(found.stored())


def elements(kind: TensorType) -> int:
    return math.prod(kind.shape)


def stored_bytes(kind: TensorType) -> int:
    return -(-elements(kind) * ELEMENT_TYPES[kind.element_type].bits // 8)


def padded_bytes(kind: TensorType) -> int:
    """As the engine lays a tensor out: its last axis in whole lanes."""
    *outer, last = kind.shape or (1,)
    lane = TensorType(kind.element_type, (last,))
    return math.prod(outer) * -(-stored_bytes(lane) // LANE_BYTES) * LANE_BYTES


def each_result(node: "Node", sizes: Sizes) -> int:
    """One function an element: all that is elementwise."""
    return elements(sizes.result(node))


def nothing(node: "Node", sizes: Sizes) -> int:
    """What only takes, places or casts elements."""
    return 0


def passes(number: int) -> Flops:
    """So many for each element of x."""
    return lambda node, sizes: number * elements(sizes.operand(node, "x"))
