"""The end of a function: the products of a head, and the choice of a token where a package makes it."""

from dataclasses import dataclass

from torch import Tensor, nn

from coreai_recipes.decoder.front import CallShape
from coreai_recipes.decoder.model import Decoder
from coreai_recipes.decoder.stack import StackModule
from coreai_recipes.export.fragments import (
    FLOAT,
    INTEGER,
    TRACED_ROWS,
    WEIGHT_PREFIX,
    Fragment,
    Port,
    parameters_as,
)
from coreai_recipes.export.pieces import Piece
from coreai_recipes.hosts.logits import Pieces
from coreai_recipes.primitives.choice import choose
from coreai_recipes.storage.parameters import EMBEDDING, head_blocks, head_pieces, stored_shape


def head_fragment(decoder: Decoder, call: CallShape) -> Fragment:
    """x -> logits in pieces, and what a draft needs of them: the last hidden state behind its norm, `hidden`."""
    model, queries = decoder.recipe.model, call.answered
    own = [f"norm.{name}" for name, _ in decoder.norm.named_parameters()]
    own += [f"head.{name}" for name, _ in decoder.head.named_parameters() if name not in ("weight", "bias")]
    parameters = {WEIGHT_PREFIX + name.replace(".", "_"): name for name in own}
    inputs = {"x": Port(FLOAT, (model.streams, model.hidden_size, 1, queries))}
    inputs |= {alias: Port(FLOAT, stored_shape(decoder, name)) for alias, name in parameters.items()}
    width = model.embedding.width or model.hidden_size
    products = HeadProducts.of(decoder, EMBEDDING if model.head.tied else "head.weight", (width, 1, 1))
    biases = HeadProducts.of(decoder, "head.bias", ()) if model.head.bias else None
    drafts = decoder.recipe.draft is not None
    piece = _HeadPiece(decoder.norm, decoder.head, list(parameters.values()), products.counts, drafts)
    outputs = {"logits": Port(FLOAT, Pieces(model.vocab_size).shape(queries))}
    if drafts:
        outputs["hidden"] = Port(FLOAT, (1, queries, model.hidden_size))
    tables = dict[str, int]()
    for each in (products, biases):
        if each is not None:
            inputs, parameters, tables = inputs | each.inputs, parameters | each.parameters, tables | each.tables
    return Fragment(f"head_{queries}", piece, inputs, outputs, parameters, tables=tables)


@dataclass(frozen=True)
class HeadProducts:
    """What the products of a head take of one of its parameters: `counts` of pieces of the logits each makes, and by
    the names of their inputs, ports, parameters and how many rows are traced."""

    counts: tuple[int, ...]
    inputs: dict[str, Port]
    parameters: dict[str, str]
    tables: dict[str, int]

    @classmethod
    def of(cls, stack: StackModule, parameter: str, row: tuple[int, ...]) -> "HeadProducts":
        """Of `parameter` by its name in a package, whose rows have the shape `row`."""
        counts, pieces = head_pieces(stack), Pieces(stack.of.layers.vocab_size)
        blocks = [block.name for block in head_blocks(stack, parameter)] or [parameter]
        alias = WEIGHT_PREFIX + parameter.removeprefix(stack.of.prefix).replace(EMBEDDING, "head").replace(".", "_")
        names = [alias] if len(blocks) == 1 else [f"{alias}_{number}" for number in range(len(blocks))]
        return cls(
            counts,
            {n: Port(FLOAT, (count * pieces.columns, *row)) for n, count in zip(names, counts, strict=True)},
            dict(zip(names, blocks, strict=True)),
            # a few rows of each piece, or they could not be told apart
            {n: TRACED_ROWS * count for n, count in zip(names, counts, strict=True)},
        )


def choice_fragment(queries: int, vocab_size: int) -> Fragment:
    """Logits in pieces -> the best token of each, `ids`, and its logit, `values`."""
    return Fragment(
        f"choice_{queries}_{vocab_size}",
        _ChoicePiece(vocab_size),
        {"logits": Port(FLOAT, Pieces(vocab_size).shape(queries))},
        {"ids": Port(INTEGER, (1, queries)), "values": Port(FLOAT, (1, queries))},
        {},
    )


class _ChoicePiece(Piece):
    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.vocab_size = vocab_size

    def forward(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        return choose(logits, self.vocab_size)


class _HeadPiece(Piece):
    def __init__(
        self, norm: nn.Module, head: nn.Module, parameters: list[str], counts: tuple[int, ...], gives_hidden: bool
    ) -> None:
        super().__init__(norm, head)
        self.parameter_names, self.counts, self.gives_hidden = parameters, counts, gives_hidden

    def forward(self, x: Tensor, *weights: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        norm, head = self.piece
        count = len(self.parameter_names)
        named, blocks = dict(zip(self.parameter_names, weights[:count], strict=True)), weights[count:]
        of_norm, of_head = (
            {name.removeprefix(part): tensor for name, tensor in named.items() if name.startswith(part)}
            for part in ("norm.", "head.")
        )
        products = len(self.counts)
        with parameters_as(norm, of_norm), parameters_as(head, of_head):
            normed = norm(x)
            logits: Tensor = head.in_pieces(normed, self.counts, blocks[:products], blocks[products:])  # type: ignore[operator]
        return (logits, normed.squeeze(2).transpose(1, 2)) if self.gives_hidden else logits
