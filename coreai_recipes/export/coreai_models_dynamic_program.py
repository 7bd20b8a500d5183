"""A decoder as Apple's runner of coreai-models calls it on macOS (`hosts.coreai_models_dynamic`): one function, whose
tokens and caches are as many as each call has."""

from collections.abc import Iterator
from dataclasses import replace

from torch import Tensor

from coreai_recipes.decoder.front import CallShape, Front
from coreai_recipes.decoder.model import Decoder
from coreai_recipes.export.fragments import (
    FLOAT,
    Fragment,
    FrontPiece,
    LayerPiece,
    Port,
    front_fragment,
    layer_fragment,
    layer_of_kind,
    parameters_as,
    state_names,
)
from coreai_recipes.export.head_fragments import head_fragment
from coreai_recipes.export.linking import Linker, Models, Numbers
from coreai_recipes.export.open_sizes import ROWS, SEEN, TOKENS
from coreai_recipes.export.pieces import Piece
from coreai_recipes.export.reporting import Signature
from coreai_recipes.export.stack_program import StackProgram, link_head
from coreai_recipes.hosts import coreai_models_dynamic as theirs
from coreai_recipes.hosts.logits import Pieces
from coreai_recipes.primitives.cache import Cache, OpenCache
from coreai_recipes.recipe.host_form import dynamic_form
from coreai_recipes.storage.chunks import Chunk

INPUTS = {theirs.IDS: Port("int32", (1, TOKENS)), theirs.POSITIONS: Port("int32", (1, SEEN))}


class OpenCall(CallShape):
    """A call of which all tokens are answered, over what of the caches holds a position: the layers take where they
    write from the mask."""

    def seen_rows(self, kind: str) -> int:
        return SEEN

    def ports(self, kind: str) -> dict[str, tuple[int, ...]]:
        return {name: shape for name, shape in super().ports(kind).items() if name != "first"}


class CoreAIModelsDynamicProgram(StackProgram):
    """`main`: all tokens of a call, and the positions of all tokens so far -> logits of the call's."""

    def __init__(self, decoder: Decoder, chunk: Chunk) -> None:
        self.decoder, self.recipe, self.chunk = decoder, decoder.recipe, chunk
        self.call = OpenCall(decoder.front, TOKENS, function="score", padded=False)

    @property
    def functions(self) -> Iterator[str]:
        yield theirs.MAIN

    @property
    def caches(self) -> dict[str, Port]:
        return {name: open_state(port) for name, port in super().caches.items()}

    def fragments(self) -> Iterator[Fragment]:
        yield self._front()
        yield from map(self._layer, self.decoder.front.kinds)
        yield head_fragment(self.decoder, self.call)
        yield end_fragment(self.recipe.model.vocab_size)

    def link(self, function: str, models: Models, linker: Linker, numbers: Numbers) -> Signature:
        self.declare(INPUTS, linker)
        self._link_layers(models, linker)
        last, head = len(self.recipe.model.layer_kinds), head_fragment(self.decoder, self.call)
        link_head(head, {"x": f"hidden_{last}", "logits": "pieces"}, [], models, linker)
        end = end_fragment(self.recipe.model.vocab_size)
        linker.append(models[end.name], "end_", {"pieces": "pieces", theirs.LOGITS: theirs.LOGITS}, {})
        linker.add_output(theirs.LOGITS)
        taken, given = theirs.ports_of(dynamic_form(self.recipe))
        inputs, outputs = ({name: Port(*port) for name, port in side.items()} for side in (taken, given))
        return Signature(inputs, outputs, super().caches)

    def _link_layers(self, models: Models, linker: Linker) -> None:
        front, layers = self._front(), {kind: self._layer(kind) for kind in self.decoder.front.kinds}
        ports = {port: port for port in (*front.inputs, *front.outputs)} | {"x": "hidden_0"}
        linker.append(models[front.name], "front_", ports, front.parameters)
        for index, kind in enumerate(self.recipe.model.layer_kinds):
            names = {
                "x": f"hidden_{index}",
                "y": f"hidden_{index + 1}",
                "slot": linker.add_integer(f"slot_{index}", self.chunk.slot(index)),
                **{port: self.call.source(kind, port) for port in self.call.ports(kind)},
                **state_names(self.decoder.front.state(kind)),
            }
            parameters = {alias: f"layers.{index}.{p}" for alias, p in layers[kind].parameters.items()}
            linker.append(models[layers[kind].name], f"layer_{index}_", names, parameters)

    def _front(self) -> Fragment:
        """input_ids, position_ids -> x, and what each kind's layers are given."""
        own = front_fragment(self.decoder, self.call, self.chunk)
        inputs = INPUTS | {alias: own.inputs[alias] for alias in own.parameters}
        piece = _FrontPiece(self.decoder.front, list(inputs), list(own.outputs), own.parameters, self.call)
        return replace(own, module=piece, inputs=inputs)

    def _layer(self, kind: str) -> Fragment:
        own = layer_fragment(self.decoder, kind, self.call, self.chunk)
        states, layer = {name: open_state(port) for name, port in own.states.items()}, layer_of_kind(self.decoder, kind)
        piece = _LayerPiece(layer, states, list(own.inputs), own.parameters, shares=False, carried=[])
        return replace(own, module=piece, states=states)


def open_state(port: Port) -> Port:
    """(L, G, rows, D) as the host has it, (L, 1, G, rows, D) with as many rows as it likes."""
    layers, heads, _, width = port.shape
    return Port(port.dtype, (layers, 1, heads, ROWS, width))


class _FrontPiece(FrontPiece):
    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        named = dict(zip(self.inputs, given, strict=True))
        front: Front = self.piece[0]  # type: ignore[assignment]
        ids, seen = named[theirs.IDS], named[theirs.POSITIONS].view(-1)  # (T,)
        positions = seen[seen.shape[0] - ids.shape[1] :]  # (S,)
        with parameters_as(front, self.weights(named)):
            found: dict[str, Tensor] = {"x": front.embedding(ids, positions)}
        for kind, of_kind in front.placed(positions).items():
            found |= {f"{port}_{kind}": tensor for port, tensor in of_kind.ports().items()}
            found[f"mask_{kind}"] = front.seen(kind, positions, seen)
        return tuple(found[name] for name in self.outputs)


class _LayerPiece(LayerPiece):
    def _cache(self, named: dict[str, Tensor], keys: Tensor | None, values: Tensor | None) -> Cache:  # type: ignore[override]
        if keys is None or values is None:
            raise TypeError("keys and values have a state each")
        return OpenCache(keys, values, named["slot"], named["mask"].shape[1])


def end_fragment(vocab_size: int) -> Fragment:
    """Logits in pieces -> a row of `vocab_size` for each token, without padding."""
    inputs = {"pieces": Port(FLOAT, Pieces(vocab_size).shape(TOKENS))}
    outputs = {theirs.LOGITS: Port(FLOAT, (1, TOKENS, vocab_size))}
    return Fragment(f"end_{TOKENS}_{vocab_size}", _EndPiece(vocab_size), inputs, outputs, {})


class _EndPiece(Piece):
    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.vocab_size = vocab_size

    def forward(self, pieces: Tensor) -> Tensor:
        return pieces.flatten(2)[..., : self.vocab_size]
