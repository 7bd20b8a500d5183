"""The functions of a decoder: its front, its layers one after another, the pick of a token, its head.

Of several packages each has a function's part: it takes the stream as the one before it gave it, (1, S, C), and gives
its own. Angles and masks are computed wherever layers need them, for they cost less than they would to hand on.
"""

from collections.abc import Iterator, Sequence

from coreai_recipes.decoder.front import CallShape
from coreai_recipes.decoder.low_rank import SIDES
from coreai_recipes.decoder.model import Decoder
from coreai_recipes.decoder.states import COMMIT
from coreai_recipes.export.commit_fragments import commit_fragment
from coreai_recipes.export.crossing_fragments import giving_fragment, pick_fragment, taking_fragment
from coreai_recipes.export.fragments import (
    FLOAT,
    INTEGER,
    Fragment,
    Port,
    buffer_of,
    carried_by,
    front_fragment,
    layer_fragment,
    low_rank_of,
    state_names,
)
from coreai_recipes.export.handed_fragments import handed_layer_fragment, handed_ports, handing_fragment
from coreai_recipes.export.head_fragments import head_fragment
from coreai_recipes.export.left_fragments import LEFT, functional_layer_fragment, left_by
from coreai_recipes.export.linking import Linker, Models, Numbers
from coreai_recipes.export.reporting import Signature
from coreai_recipes.export.stack_program import StackProgram, give, link_head
from coreai_recipes.storage.chunks import Chunk

Four = tuple[int, int, int, int]


class DecoderProgram(StackProgram):
    """`decode`, `prefill`, and `score` where the recipe has it: the part of them that is in `chunk`."""

    def __init__(self, decoder: Decoder, chunks: Sequence[Chunk], chunk: Chunk) -> None:
        self.decoder, self.recipe = decoder, decoder.recipe
        self.chunks, self.chunk = chunks, chunk

    @property
    def functions(self) -> Iterator[str]:
        yield from self.recipe.export.functions.queries
        if self.chunk.buffers:
            yield COMMIT

    def fragments(self) -> Iterator[Fragment]:
        decoder, chunk = self.decoder, self.chunk
        for buffer in chunk.buffers.values():
            yield commit_fragment(decoder.front, buffer, carried_by(chunk, buffer.kind))
        for call in map(decoder.call, self.recipe.export.functions.queries):
            crossing = _Crossing(decoder, call, self.chunks)
            if chunk.kinds:
                yield front_fragment(decoder, call, chunk)
                yield from (crossing.layer(chunk, index) for index in range(chunk.first, chunk.end))
                yield from (left.joined for left in left_by(chunk, call) if left.joined is not None)
            if crossing.picks_in(chunk):
                yield from _picks(decoder, call).values()
            yield from map(taking_fragment, crossing.taken(chunk).values())
            yield from map(giving_fragment, crossing.given(chunk).values())
            if not self.recipe.export.is_functional:
                yield from (handing_fragment(chunk.states[kind]) for kind in crossing.handed(chunk).values())
            if chunk.answers:
                yield head_fragment(decoder, call)
                yield from self.choices(call.answered, self.recipe.model.vocab_size)

    def link(self, function: str, models: Models, linker: Linker, numbers: Numbers) -> Signature:
        decoder, chunk = self.decoder, self.chunk
        if function == COMMIT:
            return self._link_commit(models, linker)
        call = decoder.call(function)
        crossing = _Crossing(decoder, call, self.chunks)
        taken = crossing.taken(chunk)
        inputs = {_port(name): _crossing_port(shape) for name, shape in taken.items()}
        for layer, owner in sorted(chunk.handed.items()):
            ports = handed_ports(decoder.front.state(decoder.recipe.model.layer_kinds[layer]))
            inputs |= {_port(f"{name}_{owner}"): port for name, port in ports.items()}
        front = front_fragment(decoder, call, chunk) if chunk.kinds else None
        if front is not None:
            inputs |= {name: port for name, port in front.inputs.items() if name not in front.parameters}
        inputs |= self._carried
        inputs |= {name: Port(FLOAT, shape) for spec in chunk.low_rank for name, shape in spec.inputs.items()}
        inputs |= self.caches if self.recipe.export.is_functional else {}
        states = self.declare(inputs, linker)

        for name, shape in taken.items():
            linker.append(models[taking_fragment(shape).name], f"take_{name}_", {"x": _port(name), "y": name}, {})
        if front is not None:
            names = {port: port for port in (*front.inputs, *front.outputs) if port not in front.parameters}
            prefix = "front_" if chunk.embeds else f"front_{chunk.number}_"
            linker.append(models[front.name], prefix, {**names, "x": "hidden_0"}, front.parameters)
        x = self._link_layers(call, crossing, models, linker)
        outputs = self._link_left(call, models, linker)
        given = crossing.given(chunk)
        for name, shape in given.items():
            linker.append(models[giving_fragment(shape).name], f"give_{name}_", {"x": name, "y": _port(name)}, {})
        outputs |= {_port(name): _crossing_port(shape) for name, shape in given.items()}
        outputs |= self._link_handed(crossing, models, linker)
        if chunk.answers:
            choices = self.choices(call.answered, self.recipe.model.vocab_size)
            outputs |= link_head(head_fragment(decoder, call), {"x": x}, choices, models, linker)
        return Signature(inputs, give(outputs, linker), states)

    @property
    def _carried(self) -> dict[str, Port]:
        """What the package is given of what its calls gave, and of what their commits did."""
        chunk = self.chunk
        found = {name: Port(FLOAT, spec.shape) for name, spec in chunk.carried.items()}
        return found | {name: Port(FLOAT, spec.shape) for name, spec in chunk.buffers.items()}

    def _link_commit(self, models: Models, linker: Linker) -> Signature:
        """The function that carries the rows before `position` into what the layers carry, which is of `base`."""
        chunk, carried = self.chunk, self.chunk.carried
        inputs = {name: Port(INTEGER, (1,)) for name in ("base", "position")} | self._carried
        states = self.declare(inputs, linker)
        for buffer in chunk.buffers.values():
            specs = carried_by(chunk, buffer.kind)
            names = {"base": "base", "position": "position", "rows": buffer.name}
            names |= {spec.tensor.name: spec.name for spec in specs}
            names |= {f"new_{spec.tensor.name}": spec.output for spec in specs}
            fragment = commit_fragment(self.decoder.front, buffer, specs)
            linker.append(models[fragment.name], f"commit_{buffer.kind}_", names, {})
        outputs = {spec.output: Port(FLOAT, spec.shape) for spec in carried.values()}
        return Signature(inputs, give(outputs, linker), states)

    def _link_layers(self, call: CallShape, crossing: "_Crossing", models: Models, linker: Linker) -> str:
        """The layers of the package, and the pick of the last real token where they need no other from there on; the
        name of what comes out of them."""
        decoder, chunk = self.decoder, self.chunk
        left = list(left_by(chunk, call))
        for index in range(chunk.first, chunk.end):
            if chunk.first < index == crossing.picked_at:  # else the package before has picked them
                self._link_picks(call, crossing, models, linker)
            kind = decoder.recipe.model.layer_kinds[index]
            names = {
                "x": crossing.stream(index),
                "y": f"hidden_{index + 1}",
                **self._at(index, linker),
                "index": linker.add_integer(f"index_{index}", index),
                **{port: call.source(kind, port) for port in call.ports(kind)},
                "per_layer_inputs": crossing.per_layer(index),
            }
            names |= {spec.tensor.name: spec.name for spec in carried_by(chunk, kind)}
            names |= {spec.port(side): spec.input(side) for spec in low_rank_of(chunk, kind) for side in SIDES}
            buffer = buffer_of(chunk, kind)
            names |= {} if buffer is None else {"rows": buffer.name}
            names |= {each.port: each.part(index) for each in left if index in each.layers}
            names |= {f"{LEFT}{name}": _port(f"{name}_{index}") for name in ("keys", "values")}
            layer = crossing.layer(chunk, index)
            parameters = {alias: f"layers.{index}.{p}" for alias, p in layer.parameters.items()}
            linker.append(models[layer.name], f"layer_{index}_", names, parameters)
        if crossing.picked_at == chunk.end and chunk.kinds:  # before it is handed on, or comes to the head
            self._link_picks(call, crossing, models, linker)
        return crossing.stream(chunk.end)

    def _at(self, index: int, linker: Linker) -> dict[str, str]:
        """A layer's states and its place in them and in what its kind carries, or the cache that is handed to it."""
        chunk, kind = self.chunk, self.recipe.model.layer_kinds[index]
        at = {}
        if carried_by(chunk, kind) or low_rank_of(chunk, kind):
            at["place"] = linker.add_integer(f"place_{index}", chunk.place(index))
        if index in chunk.read:
            return at | {name: _port(f"{name}_{chunk.read[index]}") for name in ("keys", "values")}
        found = at | state_names(chunk.states.get(self.decoder.front.owners[kind]))
        if self.decoder.front.attends(kind):
            found["slot"] = linker.add_integer(f"slot_{index}", chunk.slot(index))
        return found

    def _link_handed(self, crossing: "_Crossing", models: Models, linker: Linker) -> dict[str, Port]:
        """Keys and values of layers whose caches later packages read, as the call leaves them: out of the states, where
        the layers themselves have not given them."""
        found = dict[str, Port]()
        for owner, kind in crossing.handed(self.chunk).items():
            state = self.chunk.states[kind]
            if self.recipe.export.is_functional:
                found |= {_port(f"{name}_{owner}"): port for name, port in handed_ports(state).items()}
                continue
            fragment = handing_fragment(state)
            names = {
                "slot": linker.add_integer(f"slot_{owner}", self.chunk.slot(owner)),
                **state_names(state),
                **{name: f"{name}_{owner}" for name in fragment.outputs},
            }
            linker.append(models[fragment.name], f"hand_{owner}_", names, {})
            found |= {f"{name}_{owner}": port for name, port in fragment.outputs.items()}
        return found

    def _link_left(self, call: CallShape, models: Models, linker: Linker) -> dict[str, Port]:
        """What layers leave for the next call, each name in one tensor."""
        found = dict[str, Port]()
        for left in left_by(self.chunk, call):
            if left.joined is not None:
                names = {f"x{at}": left.part(index) for at, index in enumerate(left.layers)} | {"y": left.output}
                linker.append(models[left.joined.name], f"stack_{left.output.removeprefix('new_')}_", names, {})
            found[left.output] = left.whole
        return found

    def _link_picks(self, call: CallShape, crossing: "_Crossing", models: Models, linker: Linker) -> None:
        """From here on only the last real token is needed."""
        sources = {"hidden": f"hidden_{crossing.picked_at}", "per_layer_inputs": "per_layer_inputs"}
        for value, pick in _picks(self.decoder, call).items():
            names = {"x": sources[value], "y": f"{value}_last", "count": "count"}
            linker.append(models[pick.name], f"pick_{value}_", names, {})


class _Crossing:
    """What goes from package to package in a call, by the names that it has in both, and the shapes (N, C, 1, S).

    `picked_at` is the layer from which on the last real token alone is needed, None where all are to the end.
    """

    def __init__(self, decoder: Decoder, call: CallShape, chunks: Sequence[Chunk]) -> None:
        self.decoder, self.call, self.chunks = decoder, call, chunks
        kinds = decoder.recipe.model.layer_kinds
        alone = (index for index, kind in enumerate(kinds) if call.tokens_of(kind) < call.tokens)
        self.picked_at = next(alone, len(kinds)) if call.picks else None
        self.picks_per_layer = "per_layer_inputs" in _picks(decoder, call)
        self._layers: dict[tuple[int, str, bool, bool], Fragment] = {}

    def picks_in(self, chunk: Chunk) -> bool:
        return self.picked_at is not None and chunk.first < self.picked_at <= chunk.end

    def stream(self, layers: int) -> str:
        """The stream behind so many layers, as what comes next is given it."""
        return "hidden_last" if layers == self.picked_at else f"hidden_{layers}"

    def per_layer(self, index: int) -> str:
        """The per-layer inputs, as layer `index` is given them."""
        return "per_layer_inputs_last" if self._is_picked(index) and self.picks_per_layer else "per_layer_inputs"

    def taken(self, chunk: Chunk) -> dict[str, Four]:
        """What a package is given by those before it."""
        if chunk.embeds:
            return {}
        model, front = self.decoder.recipe.model, self.decoder.front
        found: dict[str, Four] = {
            self.stream(chunk.first): (model.streams, model.hidden_size, 1, self._tokens(chunk.first)),
        }
        if front.per_layer is not None and chunk.kinds:
            shape = front.per_layer.layers, front.per_layer.size, 1, self._tokens(chunk.first)
            found[self.per_layer(chunk.first)] = shape
        return found

    def given(self, chunk: Chunk) -> dict[str, Four]:
        """What a package gives to those behind it, of what begins in it."""
        needed = {name: shape for later in self.chunks[chunk.number :] for name, shape in self.taken(later).items()}
        own = {self.stream(chunk.end)}
        if chunk.embeds:
            own.add("per_layer_inputs")
        if self.picks_in(chunk):
            own.add("per_layer_inputs_last")
        return {name: shape for name, shape in needed.items() if name in own}

    def handed(self, chunk: Chunk) -> dict[int, str]:
        """The layers of a package whose caches later ones read, and their kinds."""
        owners = sorted({owner for later in self.chunks[chunk.number :] for owner in later.handed.values()})
        kinds = self.decoder.recipe.model.layer_kinds
        return {owner: kinds[owner] for owner in owners if chunk.first <= owner < chunk.end}

    def layer(self, chunk: Chunk, index: int) -> Fragment:
        """What a layer is in a package: with a cache of its own, in a state or the host's, or with one that is handed
        to it."""
        kind, reads = self.decoder.recipe.model.layer_kinds[index], index in chunk.read
        hands = index in chunk.read.values() or index in self.handed(chunk)
        key = chunk.number, kind, reads, hands
        if key not in self._layers:  # each once, for all layers that are alike
            self._layers[key] = self._made(chunk, kind, reads, hands)
        return self._layers[key]

    def _made(self, chunk: Chunk, kind: str, reads: bool, hands: bool) -> Fragment:
        if reads:
            return handed_layer_fragment(self.decoder, kind, self.call, chunk)
        if self.decoder.recipe.export.is_functional and self.decoder.front.attends(kind):
            return functional_layer_fragment(self.decoder, kind, self.call, chunk, hands)
        return layer_fragment(self.decoder, kind, self.call, chunk)

    def _is_picked(self, layers: int) -> bool:
        return self.picked_at is not None and layers >= self.picked_at

    def _tokens(self, layers: int) -> int:
        """Of how many tokens the stream is behind so many layers."""
        return 1 if self._is_picked(layers) else self.call.tokens


def _port(name: str) -> str:
    """How what crosses is called between packages: inside it has its own name, and another form."""
    return f"handed_{name}"


def _crossing_port(shape: Four) -> Port:
    return Port(FLOAT, (1, shape[3], shape[0] * shape[1]))


def _picks(decoder: Decoder, call: CallShape) -> dict[str, Fragment]:
    """What a call picks the last real token of: the hidden state, and what the layers behind it are given."""
    if not call.picks:
        return {}
    model = decoder.recipe.model
    picks = {"hidden": pick_fragment("pick", (model.streams, model.hidden_size, 1, call.tokens))}
    per_layer = decoder.front.per_layer
    if per_layer is not None and call.sharing == "last":
        picks["per_layer_inputs"] = pick_fragment("pick_per_layer", (per_layer.layers, per_layer.size, 1, call.tokens))
    return picks
