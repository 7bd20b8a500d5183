"""The parameters that a package holds, in the order and in the shapes in which it does."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from coreai_recipes.decoder.model import EMBEDDED, PER_LAYER_ROWS, PER_LAYER_TABLE
from coreai_recipes.decoder.stack import StackModule
from coreai_recipes.hosts.logits import Pieces
from coreai_recipes.recipe.schema import MODEL
from coreai_recipes.storage.base import Shape
from coreai_recipes.storage.compression import Compression, Parameters
from coreai_recipes.storage.row_blocks import RowBlock, pieces_together

EMBEDDING = "embedding.weight"
# the input that takes the rows of a table which a host reads
TABLE_INPUTS = {PER_LAYER_TABLE: PER_LAYER_ROWS, EMBEDDING: EMBEDDED}


def stored_parameters(stacks: Sequence[StackModule]) -> Parameters:
    """Those of weight.bin, by their names in a package. Raw tables lie beside it, whole numbers in the program."""
    found = _parameters(
        stacks,
        ((stack, name, stored_shape(stack, name)) for stack, name in _weights(stacks) if name not in stack.tables),
    )
    return replace(found, blocks=tuple(block for stack in stacks for block in head_blocks(stack)))


def raw_tables(stacks: Sequence[StackModule]) -> Parameters:
    """The tables that a host reads: those that are in no package, and the embedding where it is the host's."""
    return _parameters(
        stacks,
        (
            (stack, name, tuple(stack.get_parameter(name).shape))
            for stack in stacks
            for name in (*stack.tables, *host_tables(stack))
        ),
    )


def host_tables(stack: StackModule) -> tuple[str, ...]:
    """Parameters of which a host has the rows, though `compress` counts them with those of weight.bin."""
    return (EMBEDDING,) if stack.of.key == MODEL and stack.recipe.export.table == "host" else ()


def own_parameters(stacks: Sequence[StackModule]) -> Parameters:
    """Those of weight.bin and the raw tables in a checkpoint's own shapes, to which nothing is added."""
    return _parameters(stacks, ((s, name, tuple(s.get_parameter(name).shape)) for s, name in _weights(stacks)))


def stored_shape(stack: StackModule, name: str) -> Shape:
    """The shape in which a package holds a parameter: what logits are made of has as many rows as their pieces."""
    shape = tuple(stack.get_parameter(name).shape)
    return (Pieces(stack.of.layers.vocab_size).rows, *shape[1:]) if name in stack.of_tokens else shape


def head_pieces(stack: StackModule) -> tuple[int, ...]:
    """How many pieces of the logits each product of a stack's head makes: one all of them where no engine runs it."""
    if not stack.recipe.export.is_for_engine:
        return (Pieces(stack.of.layers.vocab_size).count,)
    compression = Compression.of(stack.recipe)
    shapes = {name: stored_shape(stack, name) for name in _of_head(stack)}
    stored = ((shape, compression.storage(stack.of.prefix + name, shape)) for name, shape in shapes.items())
    return pieces_together(stack.of.layers.vocab_size, stored)


def head_blocks(stack: StackModule, parameter: str | None = None) -> tuple[RowBlock, ...]:
    """The rows that each product of a stack's head takes, of its matrix and its bias, or of the one that is named; none
    where there is one product, which takes all of them."""
    counts, columns = head_pieces(stack), Pieces(stack.of.layers.vocab_size).columns
    if len(counts) == 1:
        return ()
    ends = [columns * sum(counts[: number + 1]) for number in range(len(counts))]
    names = [stack.of.prefix + name for name in _of_head(stack)] if parameter is None else [parameter]
    return tuple(RowBlock(name, first, end) for name in names for first, end in zip([0, *ends], ends, strict=False))


def _of_head(stack: StackModule) -> Iterator[str]:
    """Its parameters with a row for each logit."""
    own = {name for name, _ in stack.named_parameters()}
    return (name for name in stack.of_tokens if name in own)


def _weights(stacks: Iterable[StackModule]) -> Iterator[tuple[StackModule, str]]:
    for stack in stacks:
        yield from ((stack, name) for name, _ in stack.named_parameters() if name not in stack.whole_numbers)


def _parameters(stacks: Sequence[StackModule], found: Iterable[tuple[StackModule, str, Shape]]) -> Parameters:
    return Parameters(Compression.of(stacks[0].recipe), {stack.of.prefix + name: shape for stack, name, shape in found})
