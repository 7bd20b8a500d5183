"""What layers leave for the next call as outputs of a function, all of one name in one tensor: what their kind carries,
and where the host keeps the caches (`export.cache: functional`) the new rows of their keys and values."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from coreai_recipes.decoder.front import CallShape
from coreai_recipes.decoder.model import Decoder
from coreai_recipes.decoder.states import CarriedSpec, StateSpec, states_of
from coreai_recipes.export.fragments import (
    FLOAT,
    NEW_ROWS,
    CalledLayer,
    Fragment,
    Port,
    carried_by,
    carried_in,
    layer_inputs,
    layer_name,
    layer_of_kind,
    places_in,
    ports_of,
    state_names,
    weights_of,
)
from coreai_recipes.export.pieces import Piece
from coreai_recipes.primitives.cache import SharedCache
from coreai_recipes.primitives.layer_inputs import LayerInputs
from coreai_recipes.storage.chunks import Chunk

LEFT = "left_"  # before keys and values of one layer as a call leaves them


@dataclass(frozen=True)
class Left:
    """An output of a function, made of what each of `layers` has under the name `port`, (N, ...) = `shape`."""

    output: str
    port: str
    layers: tuple[int, ...]
    shape: tuple[int, ...]

    def part(self, layer: int) -> str:
        """What is of one layer: the output itself where no other has a part in it."""
        return self.output if len(self.layers) == 1 else f"{self.output}_{layer}"

    @property
    def whole(self) -> Port:
        return Port(FLOAT, (len(self.layers) * self.shape[0], *self.shape[1:]))

    @property
    def joined(self) -> Fragment | None:
        """What puts the parts together, in the order of the layers; None where there is one."""
        return None if len(self.layers) == 1 else stacking_fragment(len(self.layers), self.shape)


def left_by(chunk: Chunk, call: CallShape) -> Iterator[Left]:
    """What the layers of a package leave for the next call."""
    kinds = chunk.recipe.model.layer_kinds

    def layers_of(kind: str) -> tuple[int, ...]:
        return tuple(index for index in range(chunk.first, chunk.end) if kinds[index] == kind)

    for buffer in chunk.buffers.values():
        yield Left(buffer.output, NEW_ROWS, layers_of(buffer.kind), (1, *buffer.new_shape(call.tokens)[1:]))
    for carried in () if chunk.buffers else chunk.carried.values():
        yield Left(carried.output, f"new_{carried.tensor.name}", layers_of(carried.kind), (1, *carried.tensor.shape))
    for name, state in states_of(chunk.states).items() if chunk.recipe.export.is_functional else ():
        layers = tuple(index for spec in state.kinds for index in layers_of(spec.kind))
        port, count = "new_values" if state.role == "v" else "new_keys", 2 if state.role == "kv" else 1
        _, G, _, D = state.shape
        yield Left(f"new_{name}", port, layers, (count, G, call.tokens, D))


def stacking_fragment(parts: int, shape: tuple[int, ...]) -> Fragment:
    """x0, x1, ... of so many layers, (N, ...) each -> all of it, (parts * N, ...)."""
    inputs = {f"x{index}": Port(FLOAT, shape) for index in range(parts)}
    name = f"stack_{parts}_of_{'x'.join(map(str, shape))}"
    return Fragment(name, _StackingPiece(), inputs, {"y": Port(FLOAT, (parts * shape[0], *shape[1:]))}, {})


def functional_layer_fragment(decoder: Decoder, kind: str, call: CallShape, chunk: Chunk, hands: bool) -> Fragment:
    """As `layer_fragment`, of a kind with a cache that the host keeps: it comes in whole, and goes out as `new_keys`
    and `new_values`, the rows of the call's tokens. Where other layers read it, it `hands` on what the call leaves."""
    state = chunk.states[kind]
    inputs = layer_inputs(decoder, kind, call) | places_in(chunk, kind, state)
    new = dict.fromkeys(state_names(state), (2 if state.values is None else 1, call.tokens))
    left = dict.fromkeys(("keys", "values"), (1, state.rows)) if hands else {}
    _, G, _, D = state.shape
    rows = {f"new_{name}": Port(FLOAT, (count, G, tokens, D)) for name, (count, tokens) in new.items()}
    rows |= {f"{LEFT}{name}": Port(FLOAT, (count, G, held, D)) for name, (count, held) in left.items()}
    name = layer_name(decoder, kind, call, chunk) + ("_functional_handing" if hands else "_functional")
    return functional_fragment(name, layer_of_kind(decoder, kind), inputs, state, rows, carried_by(chunk, kind))


def functional_fragment(
    name: str,
    layer: nn.Module,
    inputs: dict[str, Port],
    state: StateSpec,
    rows: Mapping[str, Port],
    carried: Sequence[CarriedSpec] = (),
) -> Fragment:
    """The fragment of a layer that is given the tensors of `state`, and gives these `rows`; without, it reads alone."""
    parameters = weights_of(layer)
    inputs = inputs | {port: Port(FLOAT, state.shape) for port in state_names(state)} | ports_of(layer, parameters)
    outputs = {"y": inputs["x"], **rows}
    outputs |= {f"new_{spec.tensor.name}": Port(FLOAT, (1, *spec.tensor.shape)) for spec in carried}
    piece = _FunctionalLayerPiece(
        layer, list(inputs), parameters, list(outputs), [spec.tensor.name for spec in carried], not rows
    )
    return Fragment(name, piece, inputs, outputs, parameters)


class _FunctionalLayerPiece(CalledLayer):
    def __init__(
        self,
        layer: nn.Module,
        inputs: list[str],
        parameters: dict[str, str],
        outputs: list[str],
        carried: list[str],
        shares: bool,
    ) -> None:
        super().__init__(layer, inputs, parameters)
        self.outputs, self.carried, self.shares = outputs, carried, shares

    def forward(self, *tensors: Tensor) -> Tensor | tuple[Tensor, ...]:
        named = dict(zip(self.inputs, tensors, strict=True))
        given = named["keys"], named.get("values"), named["slot"]
        if self.shares:
            return self.run(named, SharedCache(*given))
        cache = LayerInputs.of_ports(named).functional_cache(*given, carried_in(named, self.carried))
        found = {"y": self.run(named, cache)}
        found |= {f"new_{name}": rows for name, rows in zip(("keys", "values"), cache.new, strict=False)}
        found |= {f"new_{name}": tensor for name, tensor in cache.carried.left.items()}
        if f"{LEFT}keys" in self.outputs:
            found |= {f"{LEFT}{name}": rows for name, rows in zip(("keys", "values"), cache.read(), strict=True)}
        return tuple(found[name] for name in self.outputs)


class _StackingPiece(Piece):
    def forward(self, *x: Tensor) -> Tensor:
        return torch.cat(x)
