"""When a value is read for the last time, and which writes may happen in place.

Values that may share memory have a *root* in common: an input, a state as it was before the call, or the node that
made the memory. Whoever writes in place must be sure that no value of the same root is read afterwards.
"""

from dataclasses import dataclass, field

from coreai_recipes.evaluate.graph import READ_STATE, STATE_OPERATIONS, Graph, state_of, written_value
from coreai_recipes.evaluate.opset import OPERATIONS, Node

Root = tuple[str, str | int]
OUTSIDE = frozenset({("outside", "")})


@dataclass
class Liveness:
    """`dead_after[i]`: values that nothing reads after node i. The others are sets of node numbers or of names."""

    dead_after: list[list[str]] = field(default_factory=list)
    overwriting: set[int] = field(default_factory=set)
    copied_into_state: set[int] = field(default_factory=set)
    copied_outputs: set[str] = field(default_factory=set)


class _Analysis:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.last_read: dict[str, int] = {}
        self.state_events: dict[str, list[int]] = {state: [] for state in graph.states}
        for index, node in enumerate(graph.nodes):
            for name in node.value_names():
                self.last_read[name] = index
            if node.type in STATE_OPERATIONS:
                self.state_events[state_of(node)].append(index)
        self.roots: dict[str, frozenset[Root]] = dict.fromkeys(graph.inputs, OUTSIDE)
        self.members: dict[Root, list[str]] = {}
        self.held: dict[str, frozenset[Root]] = {state: frozenset({("state", state)}) for state in graph.states}
        # Memory that belongs to a state at some time of the call.
        self.of_states: set[Root] = {("state", state) for state in graph.states}
        self.result = Liveness()

    def run(self) -> Liveness:
        for index, node in enumerate(self.graph.nodes):
            self._place(index, node)
            names = {*node.value_names(), *(result.name for result in node.results)}
            self.result.dead_after.append(
                [
                    name
                    for name in sorted(names)
                    if self.last_read.get(name, index) == index
                    and name not in self.graph.outputs
                    and name not in self.graph.constants
                    and name not in self.graph.states
                ]
            )
        for name in self.graph.outputs:
            # The caller keeps an output, and must not see the next call write into it.
            roots = self.roots.get(name, OUTSIDE)
            if roots & OUTSIDE or roots & self.of_states:
                self.result.copied_outputs.add(name)
        return self.result

    def _place(self, index: int, node: Node) -> None:
        """Give each result of the node its roots."""
        own = frozenset({("node", index)})
        if node.type == READ_STATE:
            roots = self.held[state_of(node)]
        elif node.type in STATE_OPERATIONS:
            roots = self._write(index, node, own)
        elif node.type == "slice_update":
            if self._may_overwrite(index, node):
                self.result.overwriting.add(index)
                roots = self._roots_of(str(node.operands["x"][0]))
            else:
                roots = own
        elif OPERATIONS[node.type].views:
            roots = own.union(*(self._roots_of(name) for name in node.value_names()))
        else:
            roots = own
        for result in node.results:
            self.roots[result.name] = roots
            for root in roots:
                self.members.setdefault(root, []).append(result.name)

    def _roots_of(self, name: str) -> frozenset[Root]:
        return self.roots.get(name, OUTSIDE)

    def _write(self, index: int, node: Node, own: frozenset[Root]) -> frozenset[Root]:
        """A state takes over the memory of what is written, unless somebody else owns it too."""
        state, value = state_of(node), written_value(node)
        roots = self._roots_of(value) if isinstance(value, str) else OUTSIDE
        others = frozenset().union(*(held for other, held in self.held.items() if other != state))
        if roots & OUTSIDE or roots & others:
            self.result.copied_into_state.add(index)
            roots = own
        self.held[state] = roots
        self.of_states |= roots
        return roots

    def _may_overwrite(self, index: int, node: Node) -> bool:
        x = node.operands["x"][0]
        if not isinstance(x, str):
            return False
        roots = self._roots_of(x)
        if roots & OUTSIDE:
            return False
        others = [name for key, names in node.operands.items() if key != "x" for name in names if isinstance(name, str)]
        if any(self._roots_of(name) & roots for name in others):
            return False
        for root in roots:
            for name in self.members.get(root, []):
                if self.last_read.get(name, -1) > index or name in self.graph.outputs:
                    return False
        for state, held in self.held.items():
            if held & roots:
                following = [event for event in self.state_events[state] if event > index]
                if not following or self.graph.nodes[following[0]].type == READ_STATE:
                    return False
        return True


def analyse(graph: Graph) -> Liveness:
    """What is dead where, and where memory must be copied to stay right."""
    return _Analysis(graph).run()
