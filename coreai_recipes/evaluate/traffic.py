"""What a function reads of its constants, and reads and writes of its states."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from coreai_recipes.evaluate.constants import BlobConstant, Constant, DecompressedConstant
from coreai_recipes.evaluate.counting import Sizes, elements, stored_bytes
from coreai_recipes.evaluate.element_types import TensorType
from coreai_recipes.evaluate.graph import READ_STATE, STATE_OPERATIONS, Graph, state_of, written_value
from coreai_recipes.evaluate.opset import OPERATIONS, Node


@dataclass
class _Blob:
    """How much of one stored constant is read: all of it, or some rows for each of several sets of indices."""

    size: int
    picked: dict[object, int]
    whole: bool = False

    def read(self) -> int:
        return self.size if self.whole else min(self.size, sum(self.picked.values()))


class Traffic:
    """What a function reads of its constants, and reads and writes of its states."""

    def __init__(self, graph: Graph, sizes: Sizes) -> None:
        self._sizes = sizes
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
        stated = OPERATIONS[node.type]
        for key, sources in node.operands.items():
            for source in sources:
                memory = self._views.get(source) if isinstance(source, str) else source
                if memory is None:
                    continue
                if stated.reads == "nothing" and key == "x":
                    self._views[node.results[0].name] = memory
                elif isinstance(memory, str) and stated.updates and key == stated.updates[0]:
                    self._views[node.results[0].name] = memory
                    self.state_bytes += stored_bytes(self._sizes.operand(node, stated.updates[1]))
                elif isinstance(memory, str):
                    is_picked = stated.reads == "taken" and key == "x"
                    read = self._sizes.result(node) if is_picked else self._sizes.type_of(node, source)
                    self.state_bytes += min(stored_bytes(read), stored_bytes(self._states[memory]))
                elif stated.reads == "taken" and key == "x":
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
                self.state_bytes += stored_bytes(self._states[state])
                if isinstance(memory, str):
                    self.state_bytes += stored_bytes(self._states[memory])
                elif memory is not None:
                    for part in _stored_parts(memory):
                        self._blob(part).whole = True
        for result in node.results:
            self._views[result.name] = state

    def _blob(self, part: BlobConstant) -> _Blob:
        return self._blobs.setdefault(part.key, _Blob(stored_bytes(TensorType(part.element_type, part.shape)), {}))

    def _pick(self, node: Node, memory: Constant) -> None:
        """Some of a constant. Of a compressed one, rows of the first axis are made of the same rows of its parts, or of
        the groups that they are in."""
        shape = self._sizes.operand(node, "x").shape
        given, taken = math.prod(shape), elements(self._sizes.result(node))
        places = tuple((key, *map(self._identity, node.operands.get(key, ()))) for key in ("indices", "begin", "end"))
        are_rows = node.type == "gather" and self._sizes.parameter(node, "axis") == 0 and shape[:1] == memory.shape[:1]
        for part in _stored_parts(memory):
            blob = self._blob(part)
            if part is memory:
                blob.picked[node.type, places] = -(-blob.size * taken // given)
            elif are_rows and part.shape and part.shape[0] and shape[0] % part.shape[0] == 0:
                blob.picked[node.type, places] = -(-blob.size * taken * shape[0] // (given * part.shape[0]))
            else:
                blob.whole = True

    def _identity(self, source: str | Constant) -> object:
        """The same for operands that are surely equal."""
        found = self._sizes.constant(source)
        return source if found is None else found.key


def _stored_parts(constant: Constant) -> Iterator[BlobConstant]:
    """What of weight.bin a constant is made of."""
    if isinstance(constant, BlobConstant):
        yield constant
    elif isinstance(constant, DecompressedConstant):
        for part in constant.parameters.values():
            yield from _stored_parts(part)
