"""A decoder as ANEMLL's host calls it (`hosts.anemll`): a front and an end of its own around the same layers."""

from collections.abc import Iterator

from torch import Tensor

from coreai_recipes.decoder.front import CallShape, Front
from coreai_recipes.decoder.model import Decoder
from coreai_recipes.export.crossing_fragments import pick_fragment
from coreai_recipes.export.fragments import (
    FLOAT,
    WEIGHT_PREFIX,
    Fragment,
    FrontPiece,
    Port,
    front_fragment,
    layer_fragment,
    parameters_as,
    state_names,
)
from coreai_recipes.export.head_fragments import head_fragment
from coreai_recipes.export.linking import Linker, Models, Numbers
from coreai_recipes.export.pieces import Piece
from coreai_recipes.export.reporting import Signature
from coreai_recipes.export.stack_program import StackProgram, give, link_head
from coreai_recipes.hosts import anemll
from coreai_recipes.hosts.logits import Pieces
from coreai_recipes.primitives.cache import HIDDEN
from coreai_recipes.storage.chunks import Chunk


class AnemllProgram(StackProgram):
    """`infer` and `prefill`. All tokens of a call are real, and its mask and positions are the host's."""

    def __init__(self, decoder: Decoder, chunk: Chunk) -> None:
        self.decoder, self.recipe, self.chunk = decoder, decoder.recipe, chunk

    @property
    def functions(self) -> Iterator[str]:
        return iter(anemll.OURS)

    def fragments(self) -> Iterator[Fragment]:
        decoder, vocab_size = self.decoder, self.recipe.model.vocab_size
        for call in (decoder.call(ours) for ours in anemll.OURS.values()):
            yield anemll_front(decoder, call, self.chunk)
            yield head_fragment(decoder, call)
            yield from (layer_fragment(decoder, kind, call, self.chunk) for kind in decoder.front.kinds)
            if call.picks:
                yield self._pick(call)
        yield from self.choices(1, vocab_size)
        yield _end(vocab_size, self.recipe.export.outputs == "ids")

    def _pick(self, call: CallShape) -> Fragment:
        return pick_fragment("pick", (1, self.recipe.model.hidden_size, 1, call.tokens))

    def link(self, function: str, models: Models, linker: Linker, numbers: Numbers) -> Signature:
        decoder, model = self.decoder, self.recipe.model
        call = decoder.call(anemll.OURS[function])
        inputs = {name: Port(*port) for name, port in anemll.inputs_of(call.tokens, self.recipe.export.context).items()}
        states = self.declare(inputs, linker)
        fragment = anemll_front(decoder, call, self.chunk)
        names = {port: port for port in (*fragment.inputs, *fragment.outputs)} | {"x": "hidden_0"}
        linker.append(models[fragment.name], "front_", names, fragment.parameters)
        layers = {kind: layer_fragment(decoder, kind, call, self.chunk) for kind in decoder.front.kinds}
        for index, kind in enumerate(model.layer_kinds):
            names = {
                "x": f"hidden_{index}",
                "y": f"hidden_{index + 1}",
                "slot": linker.add_integer(f"slot_{index}", self.chunk.slot(index)),
                **{port: call.source(kind, port) for port in call.ports(kind)},
                "first": "current_pos",
                **state_names(decoder.front.state(kind)),
            }
            parameters = {alias: f"layers.{index}.{p}" for alias, p in layers[kind].parameters.items()}
            linker.append(models[layers[kind].name], f"layer_{index}_", names, parameters)
        x = f"hidden_{len(model.layer_kinds)}"
        if call.picks:
            names = {"x": x, "y": "hidden_last", "count": linker.add_integer("count", call.tokens)}
            linker.append(models[self._pick(call).name], "pick_hidden_", names, {})
            x = "hidden_last"
        choices = self.choices(1, model.vocab_size)
        found = link_head(head_fragment(decoder, call), {"x": x}, choices, models, linker)
        end = _end(model.vocab_size, bool(choices))
        linker.append(models[end.name], "end_", {name: name for name in (*found, *end.outputs)}, {})
        return Signature(inputs, give(end.outputs, linker), states)


def anemll_front(decoder: Decoder, call: CallShape, chunk: Chunk) -> Fragment:
    """input_ids, position_ids, causal_mask -> x, and what each kind's layers are given."""
    own, host = front_fragment(decoder, call, chunk), anemll.inputs_of(call.tokens, decoder.recipe.export.context)
    weights = {name: port for name, port in own.inputs.items() if name.startswith(WEIGHT_PREFIX)}
    given = {name: Port(*port) for name, port in host.items() if name != "current_pos"}  # where rows are written
    inputs = given | weights
    piece = _FrontPiece(decoder.front, list(inputs), list(own.outputs), own.parameters, call)
    return Fragment(
        f"front_anemll_{call.tokens}",
        piece,
        inputs,
        own.outputs,
        own.parameters,
        float32_outputs=own.float32_outputs,
        tables=own.tables,
    )


class _FrontPiece(FrontPiece):
    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        named = dict(zip(self.inputs, given, strict=True))
        front: Front = self.piece[0]  # type: ignore[assignment]
        inputs = front.placed(named["position_ids"])
        with parameters_as(front, self.weights(named)):
            x = front.embedding(named["input_ids"], named["position_ids"])
        seen = named["causal_mask"].clamp(min=HIDDEN)  # (1, 1, S, K); no -inf goes into the layers
        found: dict[str, Tensor] = {"x": x}
        for kind, of_kind in inputs.items():
            found |= {f"{port}_{kind}": tensor for port, tensor in of_kind.ports().items()}
            keys_last = self._call.mask_shape(kind)[2:] == seen.shape[2:]
            found[f"mask_{kind}"] = seen if keys_last else seen.permute(0, 3, 1, 2)  # (1, K, 1, S)
        return tuple(found[name] for name in self.outputs)


def _end(vocab_size: int, chooses: bool) -> Fragment:
    """Logits in pieces -> the host's parts of them; or the best token and its logit -> those as of one part."""
    outputs = {name: Port(*port) for name, port in anemll.outputs_of(vocab_size, chooses).items()}
    if chooses:
        inputs = {"ids": Port("int32", (1, 1)), "values": Port(FLOAT, (1, 1))}
        return Fragment("end_anemll_chosen", _ChosenPiece(), inputs, outputs, {})
    pieces = {"logits": Port(FLOAT, Pieces(vocab_size).shape(1))}
    return Fragment(f"end_anemll_{vocab_size}", _PartsPiece(anemll.logit_sizes(vocab_size)), pieces, outputs, {})


class _PartsPiece(Piece):
    def __init__(self, sizes: list[int]) -> None:
        super().__init__()
        self.sizes = sizes

    def forward(self, logits: Tensor) -> tuple[Tensor, ...]:
        # reshaped, for a part that is all of the logits would be no operation at all
        return tuple(logits[:, n, :size].reshape(1, 1, size) for n, size in enumerate(self.sizes))


class _ChosenPiece(Piece):
    def forward(self, ids: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        return ids.view(1), values.view(1)
