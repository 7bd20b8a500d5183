"""The pieces of a draft, each converted once: its front, its start, a layer of each kind, its head, and what joins the
tokens of several steps. See `export.fragments`."""

from typing import cast

import torch
from torch import Tensor, nn

from coreai_recipes.decoder.draft import Draft
from coreai_recipes.decoder.model import EMBEDDED
from coreai_recipes.decoder.stack import StackModule
from coreai_recipes.decoder.states import StateSpec
from coreai_recipes.export.fragments import (
    FLOAT,
    INTEGER,
    TRACED_ROWS,
    WEIGHT_PREFIX,
    Fragment,
    Port,
    embedding_ports,
    fragment_of_layer,
    layer_port,
    parameters_as,
    ports_of,
    weights_of,
)
from coreai_recipes.export.head_fragments import HeadProducts
from coreai_recipes.export.left_fragments import functional_fragment
from coreai_recipes.export.pieces import Piece
from coreai_recipes.hosts.logits import Pieces
from coreai_recipes.primitives.layer_inputs import FLOAT32
from coreai_recipes.primitives.registry import primitive
from coreai_recipes.storage.parameters import EMBEDDING, stored_shape


def draft_front_fragment(draft: Draft) -> Fragment:
    """A position and what is seen of each kind -> angles and masks: the same for all steps of a call."""
    inputs = {"position": Port(INTEGER, (1,)), **{f"seen_{owner}": Port(INTEGER, (1,)) for owner in draft.owners}}
    outputs, turned = dict[str, Port](), list[str]()
    for kind in dict.fromkeys(draft.spec.layer_kinds):
        outputs |= {f"{port}_{kind}": layer_port(port, shape) for port, shape in draft.ports(kind).items()}
        turned += [f"{port}_{kind}" for port in draft.ports(kind) if port in FLOAT32]
    piece = _DraftFrontPiece(draft, list(inputs), list(outputs))
    return Fragment("draft_front", piece, inputs, outputs, {}, float32_outputs=tuple(turned))


def draft_start_fragment(draft: Draft, target: StackModule) -> Fragment:
    """The last token and the hidden state before it, the target's or the draft's own -> x."""
    model, looked_up = draft.recipe.model, embedding_ports(draft.recipe, 1)
    inputs = {**looked_up, "last_hidden": Port(FLOAT, (1, 1, model.hidden_size))}
    # not the target's own embedding: that of the exported form is scaled with the residual stream
    with torch.device("meta"):
        embedding = primitive("embedding", "table")(model.vocab_size, model.hidden_size, model.embedding_scale)
    tables = {WEIGHT_PREFIX + "embedding": EMBEDDING} if "input_ids" in looked_up else {}
    projection = {WEIGHT_PREFIX + "pre_projection": f"{draft.of.prefix}pre_projection.weight"}
    inputs |= {table: Port(FLOAT, stored_shape(target, name)) for table, name in tables.items()}
    inputs |= ports_of(draft, projection, draft.of.prefix)
    outputs = {"x": Port(FLOAT, (1, draft.spec.hidden_size, 1, 1))}
    piece = _DraftStartPiece(draft, embedding, list(inputs))
    return Fragment(
        "draft_start", piece, inputs, outputs, {**tables, **projection}, tables=dict.fromkeys(tables, TRACED_ROWS)
    )


def draft_layer_fragment(draft: Draft, kind: str, state: StateSpec) -> Fragment:
    """A layer of the draft, which reads the target's `state`."""
    layer = next(layer for layer in draft.stack if layer.kind == kind)
    inputs = {"x": Port(FLOAT, (1, draft.spec.hidden_size, 1, 1))}
    inputs |= {port: layer_port(port, shape) for port, shape in draft.ports(kind).items()}
    inputs["slot"] = Port(INTEGER, (1,))
    if draft.recipe.export.is_functional:
        return functional_fragment(f"draft_layer_{kind}_functional", layer, inputs, state, {})
    return fragment_of_layer(f"draft_layer_{kind}", layer, inputs, state, shares=True)


def draft_head_fragment(draft: Draft) -> Fragment:
    """x of the draft -> its logits, and the hidden state that it is given next."""
    pieces, prefix = Pieces(draft.spec.vocab_size), draft.of.prefix
    parameters = weights_of(draft.norm, f"{prefix}norm.") | weights_of(
        draft.post_projection, f"{prefix}post_projection."
    )
    if draft.clusters is not None:
        parameters |= weights_of(draft.clusters.centroids, f"{prefix}clusters.centroids.")
    inputs = {"x": Port(FLOAT, (1, draft.spec.hidden_size, 1, 1)), **ports_of(draft, parameters, prefix)}
    counts: tuple[int, ...] = (pieces.count,)
    if draft.clusters is None:
        products = HeadProducts.of(draft, f"{prefix}head.weight", (draft.spec.hidden_size, 1, 1))
        counts, tables, of_head = products.counts, products.tables, products.parameters
        inputs |= products.inputs
    else:
        of_head = {WEIGHT_PREFIX + "draft_head_weight": f"{prefix}head.weight"}
        inputs |= {table: Port(FLOAT, stored_shape(draft, "head.weight")) for table in of_head}
        tables = dict.fromkeys(of_head, TRACED_ROWS * pieces.count)
        parameters |= of_head
        inputs["ordering"] = Port(INTEGER, tuple(draft.clusters.ordering.shape))
    outputs = {
        "logits": Port(FLOAT, pieces.shape(1)),
        "hidden": Port(FLOAT, (1, 1, draft.recipe.model.hidden_size)),
    }
    piece = _DraftHeadPiece(draft, parameters, counts)
    return Fragment("draft_head", piece, inputs, outputs, parameters | of_head, tables=tables)


def joining_fragment(steps: int) -> Fragment:
    """The token that each step chose, and its logit -> those of all steps."""
    each = {"ids": Port(INTEGER, (1, 1)), "values": Port(FLOAT, (1, 1))}
    inputs = {f"step_{step}_{name}": port for name, port in each.items() for step in range(steps)}
    outputs = {name: Port(port.dtype, (1, steps)) for name, port in each.items()}
    return Fragment(f"joining_{steps}", _JoiningPiece(), inputs, outputs, {})


class _DraftFrontPiece(Piece):
    def __init__(self, draft: Draft, inputs: list[str], outputs: list[str]) -> None:
        super().__init__(draft)
        self.inputs, self.outputs = inputs, outputs

    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        draft, found = cast(Draft, self.piece[0]), dict[str, Tensor]()
        named = dict(zip(self.inputs, given, strict=True))
        seen = {name.removeprefix("seen_"): value for name, value in named.items() if name.startswith("seen_")}
        for kind in dict.fromkeys(draft.spec.layer_kinds):
            ports = draft.inputs(kind, named["position"], seen).ports()
            found |= {f"{port}_{kind}": tensor for port, tensor in ports.items()}
        return tuple(found[name] for name in self.outputs)


class _DraftStartPiece(Piece):
    def __init__(self, draft: Draft, embedding: nn.Module, inputs: list[str]) -> None:
        super().__init__(draft, embedding)
        self.inputs = inputs

    def forward(self, *given: Tensor) -> Tensor:
        draft, embedding = cast(Draft, self.piece[0]), self.piece[1]
        named = dict(zip(self.inputs, given, strict=True))
        weights = {"pre_projection.weight": named[WEIGHT_PREFIX + "pre_projection"]}
        with parameters_as(draft, weights):
            if EMBEDDED in named:
                return draft.start(embedding.from_rows(named[EMBEDDED]), named["last_hidden"])  # type: ignore[operator]
            with parameters_as(embedding, {"weight": named[WEIGHT_PREFIX + "embedding"]}):
                return draft.start(embedding(named["input_ids"]), named["last_hidden"])


class _JoiningPiece(Piece):
    def forward(self, *given: Tensor) -> tuple[Tensor, Tensor]:
        steps = len(given) // 2
        return torch.cat(given[:steps], 1), torch.cat(given[steps:], 1)


class _DraftHeadPiece(Piece):
    def __init__(self, draft: Draft, parameters: dict[str, str], counts: tuple[int, ...]) -> None:
        super().__init__(draft)
        self.parameter_names, self.counts = [name.removeprefix(draft.of.prefix) for name in parameters.values()], counts

    def forward(self, x: Tensor, *given: Tensor) -> tuple[Tensor, Tensor]:
        draft, count = cast(Draft, self.piece[0]), len(self.parameter_names)
        if draft.clusters is None:
            with parameters_as(draft, dict(zip(self.parameter_names, given[:count], strict=True))):
                return draft.finish(x, self.counts, given[count:])
        names = [*self.parameter_names, "clusters.ordering"]
        with parameters_as(draft, dict(zip(names, given, strict=True))):
            return draft.finish(x, self.counts)
