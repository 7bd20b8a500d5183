"""Caches between packages: what hands one layer's keys and values on, and a layer that is handed those of another."""

from collections.abc import Mapping

from torch import Tensor

from coreai_recipes.decoder.front import CallShape
from coreai_recipes.decoder.model import Decoder
from coreai_recipes.decoder.states import StateSpec
from coreai_recipes.export.fragments import (
    FLOAT,
    INTEGER,
    CalledLayer,
    Fragment,
    Port,
    layer_inputs,
    layer_of_kind,
    low_rank_ports,
    low_rank_suffix,
    ports_of,
    state_names,
    untouched,
    weights_of,
)
from coreai_recipes.export.pieces import Piece
from coreai_recipes.primitives.cache import HandedCache, SharedCache
from coreai_recipes.storage.chunks import Chunk


def handed_ports(spec: StateSpec) -> dict[str, Port]:
    """The keys and values of one layer."""
    return dict.fromkeys(("keys", "values"), Port(FLOAT, (1, *spec.shape[1:])))


def handing_fragment(spec: StateSpec) -> Fragment:
    """One layer's keys and values out of its states, as a call has left them."""
    states = {port: Port(FLOAT, spec.shape) for port in state_names(spec)}
    outputs = {f"handed_{name}": port for name, port in handed_ports(spec).items()}
    name = f"hand_{'x'.join(map(str, spec.shape))}_{len(states)}"
    return Fragment(name, _HandingPiece(states), {"slot": Port(INTEGER, (1,))}, outputs, {}, states)


def handed_layer_fragment(decoder: Decoder, kind: str, call: CallShape, chunk: Chunk) -> Fragment:
    """x, what the front computed, and the keys and values of another layer -> x of the next layer."""
    layer = layer_of_kind(decoder, kind)
    inputs, parameters = layer_inputs(decoder, kind, call) | handed_ports(decoder.front.state(kind)), weights_of(layer)
    inputs |= low_rank_ports(chunk, kind) | ports_of(layer, parameters)
    piece = _HandedLayerPiece(layer, list(inputs), parameters)
    name = f"layer_{kind}_{call.tokens_of(kind)}_handed{low_rank_suffix(chunk, kind)}"
    return Fragment(name, piece, inputs, {"y": inputs["x"]}, parameters)


class _HandingPiece(Piece):
    keys: Tensor
    values: Tensor | None

    def __init__(self, states: Mapping[str, Port]) -> None:
        super().__init__()
        for name in ("keys", "values"):
            self.register_buffer(name, untouched(states[name]) if name in states else None)

    def forward(self, slot: Tensor) -> tuple[Tensor, Tensor]:
        return SharedCache(self.keys, self.values, slot).read()


class _HandedLayerPiece(CalledLayer):
    def forward(self, *tensors: Tensor) -> Tensor:
        named = dict(zip(self.inputs, tensors, strict=True))
        return self.run(named, HandedCache(named["keys"], named["values"]))
