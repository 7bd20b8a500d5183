"""What one call of a function computes and reads, counted from the saved program's operations and declared types."""

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from coreai_recipes.evaluate import operations as _catalogue  # noqa: F401  (fills the registry)
from coreai_recipes.evaluate.constants import BlobConstant, Constant, DecompressedConstant
from coreai_recipes.evaluate.element_types import ELEMENT_TYPES
from coreai_recipes.evaluate.errors import EvaluationError
from coreai_recipes.evaluate.graph import (
    READ_STATE,
    STATE_OPERATIONS,
    Graph,
    TensorType,
    read_graph,
    state_of,
    written_value,
)
from coreai_recipes.evaluate.package import Package
from coreai_recipes.evaluate.registry import Node

LANE_BYTES = 64


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
    types = _Types(graph)
    traffic = _Traffic(graph, types)
    flops = sum(count_flops(node, types) for node in graph.nodes)
    results = [
        types.type_of(node, result.name)
        for node in graph.nodes
        for result in node.results
        if not traffic.is_state(result.name)
    ]
    return Cost(
        flops,
        traffic.weight_bytes(),
        traffic.state_bytes,
        dict(Counter(node.type for node in graph.nodes)),
        sum(map(_bytes, results)),
        sum(map(_padded_bytes, results)),
    )


class _Types:
    """Types of the operands and results of nodes, every size known."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph

    def constant(self, source: str | Constant) -> Constant | None:
        """The constant that an operand is bound to, or None where the run computes it."""
        return self._graph.constants.get(source) if isinstance(source, str) else source

    def type_of(self, node: Node, source: str | Constant) -> TensorType:
        found = self.constant(source)
        if found is not None:
            return TensorType(found.element_type, found.shape)
        name = str(source)
        kind = self._graph.types[name] if name in self._graph.types else self._graph.states[name]
        if -1 in kind.shape:
            raise EvaluationError(f"{node.type} {node.name}: a size that only the run decides cannot be counted")
        return kind

    def operand(self, node: Node, key: str) -> TensorType:
        return self.type_of(node, node.operands[key][0])

    def result(self, node: Node) -> TensorType:
        return self.type_of(node, node.results[0].name)

    def parameter(self, node: Node, key: str) -> int:
        """A constant number, 0 where it is not given."""
        if not node.operands.get(key):
            return 0
        found = self.constant(node.operands[key][0])
        if found is None:
            raise EvaluationError(f"{node.type} {node.name}: {key} is computed by the program and cannot be counted")
        return int(found.stored())


def _count(kind: TensorType) -> int:
    return math.prod(kind.shape)


def _bytes(kind: TensorType) -> int:
    return -(-_count(kind) * ELEMENT_TYPES[kind.element_type].bits // 8)


def _padded_bytes(kind: TensorType) -> int:
    """As the engine lays a tensor out: its last axis in whole lanes."""
    *outer, last = kind.shape or (1,)
    lane = TensorType(kind.element_type, (last,))
    return math.prod(outer) * -(-_bytes(lane) // LANE_BYTES) * LANE_BYTES


# --- arithmetic -------------------------------------------------------------------------------------------------------

# What only takes, places or casts elements.
MOVES = frozenset(STATE_OPERATIONS) | {
    "band_part", "cast", "concat", "depth_to_space", "expand_dims", "fill", "fill_like", "flatten2d", "gather",
    "gather_along_axis", "gather_nd", "identity", "non_zero", "one_hot", "pad", "pixel_shuffle", "pixel_unshuffle",
    "range_1d", "reshape", "reshape_like", "reverse", "scatter", "scatter_along_axis", "scatter_nd", "shape",
    "slice_by_index", "slice_by_size", "slice_update", "sliding_windows", "space_to_depth", "split", "squeeze",
    "stack", "tile", "transpose",
}  # fmt: skip

# Additions, multiplications, comparisons and functions for each element of x.
SOFTMAX = 5  # largest, difference, exponential, sum, quotient
PASSES = {
    "argsort": 1,
    "batch_norm": 4,  # the statistics are given: difference, factor, gamma, beta
    "cumsum": 1,
    "instance_norm": 7,  # as layer_norm
    "l2_norm": 3,  # square, sum, factor
    "layer_norm": 7,  # sum, difference, square, sum, factor, gamma, beta
    "reduce_argmax": 1,
    "reduce_argmin": 1,
    "reduce_l1_norm": 2,
    "reduce_l2_norm": 2,
    "reduce_log_sum": 1,
    "reduce_log_sum_exp": 4,  # largest, difference, exponential, sum
    "reduce_max": 1,
    "reduce_mean": 1,
    "reduce_min": 1,
    "reduce_prod": 1,
    "reduce_sum": 1,
    "reduce_sum_square": 2,
    "softmax": SOFTMAX,
    "topk": 1,
}


def _matmul(node: Node, types: _Types) -> int:
    shape = types.operand(node, "x").shape
    inner = shape[-2] if types.parameter(node, "transpose_x") else shape[-1]
    return 2 * inner * _count(types.result(node))


def _linear(node: Node, types: _Types) -> int:
    inner = types.operand(node, "weight").shape[1]
    return (2 * inner + bool(node.operands.get("bias"))) * _count(types.result(node))


def _conv(node: Node, types: _Types) -> int:
    inner = math.prod(types.operand(node, "weight").shape[1:])  # of one group
    return (2 * inner + bool(node.operands.get("bias"))) * _count(types.result(node))


def _einsum(node: Node, types: _Types) -> int:
    """(B, C, H, W) and (B, W, H, U) to (B, C, H, U)."""
    return 2 * types.type_of(node, node.operands["values"][0]).shape[-1] * _count(types.result(node))


def _attention(node: Node, types: _Types) -> int:
    """q (..., L, D), k (..., K, D), v (..., K, E): scores, their scale, mask and softmax, and what they mix."""
    keys, width = types.operand(node, "key").shape[-2:]
    scores = _count(types.operand(node, "query")) // width * keys
    each = 2 * width + 1 + bool(node.operands.get("attn_mask")) + SOFTMAX
    return each * scores + 2 * keys * _count(types.result(node))


def _local_response_norm(node: Node, types: _Types) -> int:
    """A square, a sum over `size` channels and the factor of them, for each element."""
    return (3 + types.parameter(node, "size")) * _count(types.operand(node, "x"))


PRODUCTS: dict[str, Callable[[Node, _Types], int]] = {
    "conv": _conv,
    "einsum": _einsum,
    "linear": _linear,
    "local_response_norm": _local_response_norm,
    "matmul": _matmul,
    "scaled_dot_product_attention": _attention,
}


def count_flops(node: Node, types: _Types) -> int:
    """The arithmetic of one operation; what is in none of the tables gives each result by one function."""
    if node.type in MOVES:
        return 0
    if node.type in PASSES:
        return PASSES[node.type] * _count(types.operand(node, "x"))
    if node.type in PRODUCTS:
        return PRODUCTS[node.type](node, types)
    return _count(types.result(node))


# --- memory -----------------------------------------------------------------------------------------------------------

# The same elements under another shape: nothing is read by them.
VIEWS = frozenset({"expand_dims", "flatten2d", "identity", "reshape", "reshape_like", "squeeze"})
# Of x they read as many elements as they give.
PICKS = frozenset({"gather", "gather_along_axis", "gather_nd", "slice_by_index", "slice_by_size"})
# A state is written to in place: by operation, what it is and what is put into it.
UPDATES = {
    "scatter": ("data", "updates"),
    "scatter_along_axis": ("data", "updates"),
    "scatter_nd": ("data", "updates"),
    "slice_update": ("x", "update"),
}


@dataclass
class _Blob:
    """How much of one stored constant is read: all of it, or some rows for each of several sets of indices."""

    size: int
    picked: dict[object, int]
    whole: bool = False

    def read(self) -> int:
        return self.size if self.whole else min(self.size, sum(self.picked.values()))


class _Traffic:
    """What a function reads of its constants, and reads and writes of its states."""

    def __init__(self, graph: Graph, types: _Types) -> None:
        self._types = types
        self._states = graph.states
        self._blobs: dict[object, _Blob] = {}
        # Values that are a constant or, by its name, a state under another name.
        self._views: dict[str, Constant | str] = dict(graph.constants)
        self.state_bytes = 0
        for node in graph.nodes:
            self._follow(node)

    def is_state(self, name: str) -> bool:
        """Whether a value is a state, as it is or as an update has left it."""
        return isinstance(self._views.get(name), str)

    def weight_bytes(self) -> int:
        return sum(blob.read() for blob in self._blobs.values())

    def _follow(self, node: Node) -> None:
        if node.type in STATE_OPERATIONS:
            self._follow_state(node)
            return
        for key, sources in node.operands.items():
            for source in sources:
                memory = self._views.get(source) if isinstance(source, str) else source
                if memory is None:
                    continue
                if node.type in VIEWS and key == "x":
                    self._views[node.results[0].name] = memory
                elif isinstance(memory, str) and key == UPDATES.get(node.type, ("", ""))[0]:
                    self._views[node.results[0].name] = memory
                    self.state_bytes += _bytes(self._types.operand(node, UPDATES[node.type][1]))
                elif isinstance(memory, str):
                    is_picked = node.type in PICKS and key == "x"
                    read = self._types.result(node) if is_picked else self._types.type_of(node, source)
                    self.state_bytes += min(_bytes(read), _bytes(self._states[memory]))
                elif node.type in PICKS and key == "x":
                    self._pick(node, memory)
                else:
                    for part in _stored_parts(memory):
                        self._blob(part).whole = True

    def _follow_state(self, node: Node) -> None:
        state = state_of(node)
        if node.type != READ_STATE:
            value = written_value(node)
            memory = self._views.get(value) if isinstance(value, str) else value
            if memory != state:
                self.state_bytes += _bytes(self._states[state])
                if isinstance(memory, str):
                    self.state_bytes += _bytes(self._states[memory])
                elif memory is not None:
                    for part in _stored_parts(memory):
                        self._blob(part).whole = True
        for result in node.results:
            self._views[result.name] = state

    def _blob(self, part: BlobConstant) -> _Blob:
        return self._blobs.setdefault(part.key, _Blob(_bytes(TensorType(part.element_type, part.shape)), {}))

    def _pick(self, node: Node, memory: Constant) -> None:
        """Some of a constant. Of a compressed one, rows of the first axis are made of the same rows of its parts."""
        shape = self._types.operand(node, "x").shape
        given, taken = math.prod(shape), _count(self._types.result(node))
        places = tuple((key, *map(self._identity, node.operands.get(key, ()))) for key in ("indices", "begin", "end"))
        are_rows = node.type == "gather" and self._types.parameter(node, "axis") == 0 and shape[:1] == memory.shape[:1]
        for part in _stored_parts(memory):
            blob = self._blob(part)
            if part is memory or (are_rows and part.shape[:1] == memory.shape[:1]):
                blob.picked[node.type, places] = -(-blob.size * taken // given)
            else:
                blob.whole = True

    def _identity(self, source: str | Constant) -> object:
        """The same for operands that are surely equal."""
        found = self._types.constant(source)
        return source if found is None else found.key


def _stored_parts(constant: Constant) -> Iterator[BlobConstant]:
    """What of weight.bin a constant is made of."""
    if isinstance(constant, BlobConstant):
        yield constant
    elif isinstance(constant, DecompressedConstant):
        for part in constant.parameters.values():
            yield from _stored_parts(part)
