"""Which pieces of a recipe are converted, each once: the front, a layer of each kind, the pick of a token, the head.

A fragment's weights are inputs of it, not constants: no conversion ever sees a real weight, and the linker turns each
of these inputs into a stored constant. `slot`, a layer's place in the states, is an input for the same reason.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from coreai_recipes.decoder.front import CallShape, Front
from coreai_recipes.decoder.low_rank import SIDES, LowRankSpec, low_rank_port
from coreai_recipes.decoder.model import EMBEDDED, PER_LAYER_ROWS, Decoder
from coreai_recipes.decoder.states import CarriedSpec, RowsSpec, StateSpec
from coreai_recipes.export.pieces import Piece, describe
from coreai_recipes.primitives.buffer import Buffer
from coreai_recipes.primitives.cache import Cache, NoCache, SharedCache
from coreai_recipes.primitives.carried import Carried, layer_of
from coreai_recipes.primitives.layer_inputs import ROTATING, SHARED, WHOLE_NUMBERS, LayerInputs
from coreai_recipes.primitives.per_layer import slice_of
from coreai_recipes.primitives.projection import Factors, Projection, with_low_rank
from coreai_recipes.recipe.schema import Recipe
from coreai_recipes.storage.chunks import Chunk
from coreai_recipes.storage.parameters import EMBEDDING, stored_shape

FLOAT, INTEGER = "float16", "int32"
WEIGHT_PREFIX = "weight_"
NEW_ROWS = "new_rows"  # what a layer leaves in a buffer
TRACED_ROWS = 8  # of a table


@dataclass(frozen=True)
class Port:
    """An input or output of a fragment."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Fragment:
    """A piece to convert: `module` takes `inputs` in their order and gives `outputs` in theirs.

    Attributes:
        parameters: inputs that are weights, and the parameter each stands for, within the piece.
        states: the names of the module's buffers that are states.
        float32_outputs: what must be computed in float32 up to the output itself.
        tables: inputs that are vocabulary-sized, and with how few rows each is traced instead.
    """

    name: str
    module: nn.Module
    inputs: dict[str, Port]
    outputs: dict[str, Port]
    parameters: dict[str, str]
    states: dict[str, Port] = field(default_factory=dict)
    float32_outputs: tuple[str, ...] = ()
    tables: Mapping[str, int] = field(default_factory=dict)

    def identity(self) -> dict[str, Any]:
        """Everything but the source code that the converted piece depends on."""
        return {
            "name": self.name,
            "inputs": {name: [port.dtype, *port.shape] for name, port in self.inputs.items()},
            "outputs": {name: [port.dtype, *port.shape] for name, port in self.outputs.items()},
            "float32_outputs": list(self.float32_outputs),
            "tables": dict(self.tables),
            "states": {name: list(port.shape) for name, port in self.states.items()},
            "module": describe(self.module),
        }


def front_fragment(decoder: Decoder, call: CallShape, chunk: Chunk) -> Fragment:
    """What a package computes before its layers. input_ids or their rows of the table, position (and count, and rows
    of the per-layer table) -> x, where it has the embedding, and what its kinds' layers are given."""
    front, model, tokens = decoder.front, decoder.recipe.model, call.tokens
    inputs, outputs, parameters, tables = dict[str, Port](), dict[str, Port](), dict[str, str](), dict[str, int]()
    looked_up = embedding_ports(decoder.recipe, tokens)
    if chunk.embeds:
        inputs |= looked_up
    inputs["position"] = Port(INTEGER, (1,))
    if tokens > 1:
        inputs["count"] = Port(INTEGER, (1,))
    if chunk.buffers:
        inputs["base"] = Port(INTEGER, (1,))
    if chunk.embeds:
        outputs["x"] = Port(FLOAT, (model.streams, model.hidden_size, 1, tokens))
        if "input_ids" in looked_up:
            tables[WEIGHT_PREFIX + "embedding"] = TRACED_ROWS
            parameters[WEIGHT_PREFIX + "embedding"] = EMBEDDING
        parameters |= weights_of_children(decoder.embedding, "embedding.")
    if chunk.embeds and front.per_layer is not None:
        L, P = front.per_layer.layers, front.per_layer.size
        inputs[PER_LAYER_ROWS] = Port(FLOAT, (1, tokens, L * P))
        outputs["per_layer_inputs"] = Port(FLOAT, (L, P, 1, tokens))
        names = [f"per_layer.{name}" for name, _ in front.per_layer.named_parameters()]
        parameters |= {WEIGHT_PREFIX + name.replace(".", "_"): name for name in names}
    inputs |= {alias: Port(FLOAT, stored_shape(decoder, name)) for alias, name in parameters.items()}
    given = {call.source(kind, port): (kind, port) for kind in chunk.kinds for port in call.ports(kind)}
    for name in sorted(given, key=lambda name: _order(given[name][1])):
        kind, port = given[name]
        if name not in inputs:
            outputs[name] = layer_port(port, call.ports(kind)[port])
    return Fragment(
        "_".join(("front", call.name, *_what_of(chunk, front))),
        FrontPiece(front, list(inputs), list(outputs), parameters, call),
        inputs,
        outputs,
        parameters,
        float32_outputs=tuple(name for name in outputs if name in given and call.is_float32(*given[name])),
        tables=tables,
    )


def _what_of(chunk: Chunk, front: Front) -> list[str]:
    """What tells a front from those of other packages: nothing where it is all of it."""
    if chunk.embeds and chunk.kinds == tuple(front.kinds):
        return []
    return [*(["x"] if chunk.embeds else []), *chunk.kinds]


def embedding_ports(recipe: Recipe, tokens: int) -> dict[str, Port]:
    """The input that says which tokens a call has: their ids, or the rows of the table that the host has looked up."""
    if recipe.export.table == "package":
        return {"input_ids": Port(INTEGER, (1, tokens))}
    return {EMBEDDED: Port(FLOAT, (1, tokens, recipe.model.embedding.width or recipe.model.hidden_size))}


def _order(port: str) -> int:
    """Angles first, padding last."""
    return 0 if port in ROTATING else 2 if port == "padding" else 1


def layer_port(name: str, shape: tuple[int, ...]) -> Port:
    """One of `LayerInputs`."""
    return Port(INTEGER if name in WHOLE_NUMBERS else FLOAT, shape)


def layer_fragment(decoder: Decoder, kind: str, call: CallShape, chunk: Chunk) -> Fragment:
    """x and what the front computed -> x of the next layer; reads and writes the states of the kind, or those that it
    shares, which it reads alone. What the kind carries comes of all its layers, and goes of this one, `new_...`."""
    front, state = decoder.front, chunk.states.get(decoder.front.owners[kind])
    inputs = layer_inputs(decoder, kind, call) | places_in(chunk, kind, state)
    name = layer_name(decoder, kind, call, chunk)
    carried, buffer = carried_by(chunk, kind), buffer_of(chunk, kind)
    return fragment_of_layer(name, layer_of_kind(decoder, kind), inputs, state, front.shares(kind), carried, buffer)


def layer_of_kind(decoder: Decoder, kind: str) -> nn.Module:
    """One of them, for all."""
    return next(layer for layer in decoder.stack if layer.kind == kind)


def layer_name(decoder: Decoder, kind: str, call: CallShape, chunk: Chunk) -> str:
    """What tells the fragment of a kind's layers from those of other calls and packages."""
    front, carried = decoder.front, carried_by(chunk, kind)
    state, name = chunk.states.get(front.owners[kind]), f"layer_{kind}_{call.tokens_of(kind)}"
    if state is not None and state.depth != front.state(kind).depth:
        name += f"_of_{state.depth}"
    if carried and carried[0].layers != decoder.recipe.model.layer_kinds.count(kind):
        name += f"_carrying_{carried[0].layers}"
    return name + low_rank_suffix(chunk, kind)


def low_rank_suffix(chunk: Chunk, kind: str) -> str:
    """How the name ends of a fragment that takes what fewer layers of its kind than the model's have of adapters."""
    found = low_rank_of(chunk, kind)
    is_part = found and len(found[0].layers) != chunk.recipe.model.layer_kinds.count(kind)
    return f"_low_rank_{len(found[0].layers)}" if is_part else ""


def places_in(chunk: Chunk, kind: str, state: StateSpec | None) -> dict[str, Port]:
    """Where a layer lies in its state and in what its kind carries or is given of adapters, and what that is."""
    carried, buffer, inputs = carried_by(chunk, kind), buffer_of(chunk, kind), dict[str, Port]()
    if buffer is not None:
        inputs["rows"] = Port(FLOAT, buffer.shape)
    if state is not None:
        inputs["slot"] = Port(INTEGER, (1,))
    if carried:
        inputs["place"] = Port(INTEGER, (1,))
    inputs |= low_rank_ports(chunk, kind)
    return inputs | {spec.tensor.name: Port(FLOAT, spec.shape) for spec in carried}


def low_rank_ports(chunk: Chunk, kind: str) -> dict[str, Port]:
    """What a layer is given of adapters, which is of all layers of its kind, and its place there."""
    ports = {spec.port(side): Port(FLOAT, spec.shape(side)) for spec in low_rank_of(chunk, kind) for side in SIDES}
    return {"place": Port(INTEGER, (1,)), **ports} if ports else {}


def layer_inputs(decoder: Decoder, kind: str, call: CallShape) -> dict[str, Port]:
    """What a layer is given in a call besides its cache and its weights."""
    tokens, per_layer = call.tokens_of(kind), decoder.front.per_layer
    model = decoder.recipe.model
    inputs = {"x": Port(FLOAT, (model.streams, model.hidden_size, 1, tokens))}
    inputs |= {name: layer_port(name, shape) for name, shape in call.ports(kind).items()}
    if per_layer is not None:
        inputs["per_layer_inputs"] = Port(FLOAT, (per_layer.layers, per_layer.size, 1, tokens))
        inputs["index"] = Port(INTEGER, (1,))
    return inputs


def carried_by(chunk: Chunk, kind: str) -> list[CarriedSpec]:
    """What the layers of a kind carry in a package."""
    return [spec for spec in chunk.carried.values() if spec.kind == kind]


def low_rank_of(chunk: Chunk, kind: str) -> list[LowRankSpec]:
    """What the layers of a kind take of adapters in a package."""
    return [spec for spec in chunk.low_rank if spec.kind == kind]


def buffer_of(chunk: Chunk, kind: str) -> RowsSpec | None:
    """The rows that the layers of a kind keep in a package since the last commit."""
    return next((spec for spec in chunk.buffers.values() if spec.kind == kind), None)


def fragment_of_layer(
    name: str,
    layer: nn.Module,
    inputs: dict[str, Port],
    spec: StateSpec | None,
    shares: bool,
    carried: Sequence[CarriedSpec] = (),
    buffer: RowsSpec | None = None,
) -> Fragment:
    """The fragment of a layer that takes `inputs` and its weights, over the states that `spec` says. It gives what it
    carries for the next call, or its rows of a `buffer`."""
    parameters = weights_of(layer)
    inputs = {**inputs, **ports_of(layer, parameters)}
    states = {} if spec is None else {port: Port(FLOAT, spec.shape) for port in state_names(spec)}
    outputs, parts = {"y": inputs["x"]}, None if buffer is None else dict(buffer.parts)
    if buffer is None:
        outputs |= {f"new_{s.tensor.name}": Port(FLOAT, (1, *s.tensor.shape)) for s in carried}
    else:
        outputs[NEW_ROWS] = Port(FLOAT, (1, *buffer.new_shape(inputs["x"].shape[3])[1:]))
    piece = LayerPiece(layer, states, list(inputs), parameters, shares, [spec.tensor.name for spec in carried], parts)
    return Fragment(name, piece, inputs, outputs, parameters, states)


def state_names(spec: StateSpec | None) -> dict[str, str]:
    """The states of a layer's fragment, and their names in the program."""
    if spec is None:
        return {}
    return {"keys": spec.keys} if spec.values is None else {"keys": spec.keys, "values": spec.values}


def weights_of(module: nn.Module, prefix: str = "") -> dict[str, str]:
    """The inputs that stand for a module's parameters, and their names below `prefix`."""
    names = [prefix + name for name, _ in module.named_parameters()]
    found = {WEIGHT_PREFIX + name.replace(".", "_"): name for name in names}
    if len(found) < len(names):
        raise ValueError(
            f"two parameters of {type(module).__name__} would be one input: {set(names) - {*found.values()}}"
        )
    return found


def weights_of_children(module: nn.Module, prefix: str) -> dict[str, str]:
    """As `weights_of`, of what is inside the module, not of what it owns itself."""
    return {alias: name for alias, name in weights_of(module, prefix).items() if "." in name.removeprefix(prefix)}


def ports_of(module: nn.Module, parameters: Mapping[str, str], prefix: str = "") -> dict[str, Port]:
    """The shapes of these inputs."""
    shapes = {alias: module.get_parameter(name.removeprefix(prefix)).shape for alias, name in parameters.items()}
    return {alias: Port(FLOAT, tuple(shape)) for alias, shape in shapes.items()}


@contextmanager
def parameters_as(module: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """The module with `tensors` in place of its parameters; torch.func.functional_call refuses to be traced."""
    owners = {name: (module.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]) for name in tensors}
    before = {name: owner._parameters[leaf] for name, (owner, leaf) in owners.items()}
    try:
        for name, (owner, leaf) in owners.items():
            owner._parameters[leaf] = tensors[name]  # type: ignore[assignment]
        yield
    finally:
        for name, (owner, leaf) in owners.items():
            owner._parameters[leaf] = before[name]


class FrontPiece(Piece):
    def __init__(
        self, front: Front, inputs: list[str], outputs: list[str], parameters: dict[str, str], call: CallShape
    ) -> None:
        super().__init__(front)
        self.inputs, self.outputs, self.parameter_names = inputs, outputs, parameters
        self._call = call  # the fragment's name says what of it the program depends on

    def weights(self, named: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors that stand for the front's parameters, by their names."""
        return {name: named[alias] for alias, name in self.parameter_names.items()}

    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        named, front, call = dict(zip(self.inputs, given, strict=True)), cast(Front, self.piece[0]), self._call
        found = dict[str, Tensor | None]()
        at = named["position"], named.get("count", _one()), named.get("base")
        for kind, of_kind in front.see(call, *at).items():
            ports = of_kind.ports()
            found |= {call.source(kind, port): tensor for port, tensor in ports.items() if port in SHARED}
            found |= {f"{port}_{kind}": tensor for port, tensor in ports.items()}
        if "x" in self.outputs:
            with parameters_as(front, self.weights(named)):
                given_rows = named.get("input_ids"), named.get(EMBEDDED), named.get(PER_LAYER_ROWS)
                found["x"], found["per_layer_inputs"] = front.embed(call, named["position"], *given_rows)
        return tuple(cast(Tensor, found[name]) for name in self.outputs)


def _one() -> Tensor:
    return torch.ones(1, dtype=torch.int32)


def untouched(state: Port) -> Tensor:
    """Zeros that take no memory before they are written.

    torch.zeros writes all of them, and in torch.empty there may be a NaN, which coremltools' own comparison of the
    states then calls inconsistent.
    """
    return torch.from_numpy(np.zeros(state.shape, np.float32))


class CalledLayer(Piece):
    """A layer with inputs in place of its weights."""

    def __init__(self, layer: nn.Module, inputs: list[str], parameters: dict[str, str]) -> None:
        super().__init__(layer)
        self.inputs, self.parameter_names = inputs, parameters

    def run(self, named: Mapping[str, Tensor], cache: Cache) -> Tensor:
        """x of the next layer, of what the fragment was given by name."""
        weights = {name: named[alias] for alias, name in self.parameter_names.items()}
        of_layer = slice_of(named["per_layer_inputs"], named["index"]) if "index" in named else None
        with parameters_as(self.piece[0], weights), with_low_rank(self.piece[0], self._low_rank(named)):
            return self.piece[0](named["x"], LayerInputs.of_ports(named), cache, of_layer)  # type: ignore[no-any-return]

    def _low_rank(self, named: Mapping[str, Tensor]) -> dict[str, Factors]:
        """Of what the kind is given of adapters, the layer's own, by matrix."""
        found = dict[str, Factors]()
        for matrix, module in self.piece[0].named_modules():
            ports = [low_rank_port(side, matrix) for side in SIDES]
            if isinstance(module, Projection) and ports[0] in named:
                a, b = (layer_of(named[port], named["place"]) for port in ports)
                found[matrix] = a, b
        return found


class LayerPiece(CalledLayer):
    keys: Tensor | None
    values: Tensor | None

    def __init__(
        self,
        layer: nn.Module,
        states: dict[str, Port],
        inputs: list[str],
        parameters: dict[str, str],
        shares: bool,
        carried: list[str],
        row_parts: dict[str, int] | None = None,
    ) -> None:
        super().__init__(layer, inputs, parameters)
        self.shares, self.carried, self.row_parts = shares, carried, row_parts
        for name in ("keys", "values"):
            self.register_buffer(name, untouched(states[name]) if name in states else None)

    def forward(self, *tensors: Tensor) -> Tensor | tuple[Tensor, ...]:
        return self.on_states(self.keys, self.values, *tensors)

    def on_states(self, keys: Tensor | None, values: Tensor | None, *tensors: Tensor) -> Tensor | tuple[Tensor, ...]:
        """As `forward`, on states that are values of a program."""
        named = dict(zip(self.inputs, tensors, strict=True))
        cache = self._cache(named, keys, values)
        y = self.run(named, cache)
        if self.row_parts is not None:
            return y, cache.carried.rows.new_rows
        return (y, *(cache.carried.left[name] for name in self.carried)) if self.carried else y

    def _cache(self, named: Mapping[str, Tensor], keys: Tensor | None, values: Tensor | None) -> Cache:
        carried = carried_in(named, self.carried)
        if self.row_parts is not None:
            carried.buffer = Buffer(layer_of(named["rows"], named["place"]), self.row_parts)
        if keys is None:
            return NoCache(carried)
        if self.shares:
            return SharedCache(keys, values, named["slot"])
        return LayerInputs.of_ports(named).cache(keys, values, named["slot"], carried)


def carried_in(named: Mapping[str, Tensor], carried: Sequence[str]) -> Carried:
    """A layer's part of what its kind carries, by the names of the tensors."""
    return Carried({name: layer_of(named[name], named["place"]) for name in carried})
