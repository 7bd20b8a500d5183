"""A decoder as Apple's runner of coreai-models calls it (`hosts.coreai_models`): its table goes to the host, and rows
of it come back, around the same layers."""

from collections.abc import Iterator
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from coreai_recipes.decoder.front import CallShape, Front
from coreai_recipes.decoder.model import Decoder
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
from coreai_recipes.hosts import coreai_models as theirs
from coreai_recipes.hosts.logits import Pieces
from coreai_recipes.primitives.cache import HIDDEN
from coreai_recipes.recipe.host_form import static_form
from coreai_recipes.storage.chunks import Chunk
from coreai_recipes.storage.parameters import EMBEDDING, stored_shape


class CoreAIModelsProgram(StackProgram):
    """`load_embeddings`, and for each number of tokens `gather_embeddings_S` and `extend_K_S`; of the prefill's also
    `prompt_opt_K_S`, which writes keys and values and is asked for nothing else."""

    def __init__(self, decoder: Decoder, chunk: Chunk) -> None:
        self.decoder, self.recipe, self.chunk = decoder, decoder.recipe, chunk
        self.form = static_form(decoder.recipe)

    @property
    def functions(self) -> Iterator[str]:
        return iter(theirs.functions_of(self.form))

    def fragments(self) -> Iterator[Fragment]:
        decoder, model = self.decoder, self.recipe.model
        yield _load(decoder)
        for call in map(self._call, self.form.queries):
            yield _gather(call.tokens, model.vocab_size, self.form.width)
            yield static_front(decoder, call, self.chunk)
            yield from (layer_fragment(decoder, kind, call, self.chunk) for kind in decoder.front.kinds)
            yield head_fragment(decoder, call)
            yield end_fragment(call.tokens, model.vocab_size)
        yield _nothing(decoder, self.form.prefill)

    def _call(self, tokens: int) -> CallShape:
        """All of its tokens are answered: the host looks at those of the last real one."""
        call = self.decoder.call("decode" if tokens == 1 else "prefill")
        return call if tokens == 1 else replace(call, function="score")

    def link(self, function: str, models: Models, linker: Linker, numbers: Numbers) -> Signature:
        query, inputs, outputs = theirs.functions_of(self.form)[function]
        given = {name: Port(*port) for name, port in inputs.items()}
        ends = {name: Port(*port) for name, port in outputs.items()}
        names = {name: name for name in (*given, *ends)}
        if not function.startswith((theirs.EXTEND, theirs.PROMPT)):  # of the table alone, without states
            for name, port in given.items():
                linker.add_input(name, port.dtype, port.shape)
            gathers = function != theirs.LOAD
            fragment = _gather(query, self.form.vocab_size, self.form.width) if gathers else _load(self.decoder)
            linker.append(models[fragment.name], "", names, fragment.parameters)
            return Signature(given, give(ends, linker), {})
        call, states = self._call(query), self.declare(given, linker)
        front = static_front(self.decoder, call, self.chunk)
        ports = {port: port for port in (*front.inputs, *front.outputs)} | {"x": "hidden_0"}
        linker.append(models[front.name], "front_", ports, front.parameters)
        self._link_layers(call, models, linker)
        last = len(self.recipe.model.layer_kinds)
        if function.startswith(theirs.PROMPT):
            # of what goes into the last layer: nothing that it computes but keys and values is needed
            end, ports = _nothing(self.decoder, query), {"x": f"hidden_{last - 1}"}
        else:
            link_head(head_fragment(self.decoder, call), {"x": f"hidden_{last}"}, [], models, linker)
            end, ports = end_fragment(query, self.form.vocab_size), {"logits": "logits"}
        linker.append(models[end.name], "end_", ports | names, {})
        return Signature(given, give(ends, linker), states)

    def _link_layers(self, call: CallShape, models: Models, linker: Linker) -> None:
        front = self.decoder.front
        layers = {kind: layer_fragment(self.decoder, kind, call, self.chunk) for kind in front.kinds}
        for index, kind in enumerate(self.recipe.model.layer_kinds):
            names = {
                "x": f"hidden_{index}",
                "y": f"hidden_{index + 1}",
                "slot": linker.add_integer(f"slot_{index}", self.chunk.slot(index)),
                **{port: call.source(kind, port) for port in call.ports(kind)},
                "first": theirs.STEP,
                **state_names(front.state(kind)),
            }
            parameters = {alias: f"layers.{index}.{p}" for alias, p in layers[kind].parameters.items()}
            linker.append(models[layers[kind].name], f"layer_{index}_", names, parameters)


def static_front(decoder: Decoder, call: CallShape, chunk: Chunk) -> Fragment:
    """Rows of the table, position_ids, causal_mask -> x, and what each kind's layers are given."""
    own, host = front_fragment(decoder, call, chunk), theirs.inputs_of(static_form(decoder.recipe), call.tokens)
    parameters = {alias: name for alias, name in own.parameters.items() if name != EMBEDDING}
    inputs = {name: Port(*port) for name, port in host.items() if name != theirs.STEP}  # where rows are written
    inputs |= {alias: own.inputs[alias] for alias in parameters}
    piece = _FrontPiece(decoder.front, list(inputs), list(own.outputs), parameters, call)
    return Fragment(
        f"front_static_{call.tokens}",
        piece,
        inputs,
        own.outputs,
        parameters,
        float32_outputs=own.float32_outputs,
    )


class _FrontPiece(FrontPiece):
    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        named = dict(zip(self.inputs, given, strict=True))
        front: Front = self.piece[0]  # type: ignore[assignment]
        positions = named[theirs.POSITIONS].to(torch.int32).view(-1)  # (S,)
        with parameters_as(front, self.weights(named)):
            x = front.embedding.from_rows(named[theirs.EMBEDDED].squeeze(2), positions)  # type: ignore[operator]
        causal = named[theirs.MASK].clamp(min=HIDDEN)  # (1, K, 1, S)
        found: dict[str, Tensor] = {"x": x}
        for kind, of_kind in front.placed(positions).items():
            found |= {f"{port}_{kind}": tensor for port, tensor in of_kind.ports().items()}
            keys_last = self._call.mask_shape(kind)[1] == 1
            seen = causal.permute(0, 2, 3, 1) if keys_last else causal  # (1, 1, S, K) or (1, K, 1, S)
            windowed = front.window(kind) is not None
            found[f"mask_{kind}"] = torch.minimum(seen, front.seen(kind, positions)) if windowed else seen
        return tuple(found[name] for name in self.outputs)


def _load(decoder: Decoder) -> Fragment:
    """The embedding table, as the host keeps it."""
    alias, form = WEIGHT_PREFIX + "embedding", static_form(decoder.recipe)
    inputs = {alias: Port(FLOAT, stored_shape(decoder, EMBEDDING))}
    outputs = {theirs.TABLE: Port(FLOAT, (form.vocab_size, 1, form.width))}
    return Fragment("table_static", _LoadPiece(form.vocab_size), inputs, outputs, {alias: EMBEDDING})


class _LoadPiece(Piece):
    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.vocab_size = vocab_size

    def forward(self, weight: Tensor) -> Tensor:
        return weight[: self.vocab_size].unsqueeze(1)


def _gather(tokens: int, vocab_size: int, width: int) -> Fragment:
    """Token ids, the table -> their rows of it."""
    inputs = {theirs.IDS: Port("int32", (1, tokens)), theirs.TABLE: Port(FLOAT, (vocab_size, 1, width))}
    outputs = {theirs.GATHERED: Port(FLOAT, (1, tokens, 1, width))}
    return Fragment(f"gather_static_{tokens}", _GatherPiece(), inputs, outputs, {})


class _GatherPiece(Piece):
    def forward(self, token_ids: Tensor, table: Tensor) -> Tensor:
        return F.embedding(token_ids, table.squeeze(1)).unsqueeze(2)


def end_fragment(tokens: int, vocab_size: int) -> Fragment:
    """Logits in pieces -> a row of `vocab_size` for each token, without padding."""
    inputs = {"logits": Port(FLOAT, Pieces(vocab_size).shape(tokens))}
    outputs = {theirs.LOGITS: Port(FLOAT, (1, 1, tokens, vocab_size))}
    return Fragment(f"end_static_{tokens}_{vocab_size}", _EndPiece(tokens, vocab_size), inputs, outputs, {})


class _EndPiece(Piece):
    def __init__(self, tokens: int, vocab_size: int) -> None:
        super().__init__()
        self.tokens, self.vocab_size = tokens, vocab_size

    def forward(self, logits: Tensor) -> Tensor:
        return logits.reshape(1, 1, self.tokens, -1)[..., : self.vocab_size]


def _nothing(decoder: Decoder, tokens: int) -> Fragment:
    """What goes into the last layer -> one number of it, in place of logits."""
    inputs = {"x": Port(FLOAT, (1, decoder.recipe.model.hidden_size, 1, tokens))}
    return Fragment(
        f"end_static_prompt_{tokens}", _NothingPiece(), inputs, {theirs.LOGITS: Port(FLOAT, (1, 1, 1, 1))}, {}
    )


class _NothingPiece(Piece):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, :1, :, :1]
