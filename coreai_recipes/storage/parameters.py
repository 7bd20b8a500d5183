"""The parameters that a package holds, in the order and in the shapes in which it does."""

from coreai_recipes.decoder.draft import ORDERING, Draft
from coreai_recipes.decoder.model import Decoder
from coreai_recipes.logits import Pieces
from coreai_recipes.storage.base import Shape
from coreai_recipes.storage.compression import Compression, Parameters


def stored_parameters(decoder: Decoder, draft: Draft | None = None) -> Parameters:
    """Those of weight.bin; a draft's are named `draft.NAME`. Raw tables lie beside it, a draft's clusters in the
    program."""
    shapes = {name: stored_shape(decoder, name) for name, _ in decoder.named_parameters() if name not in decoder.tables}
    if draft is not None:
        names = [name for name, _ in draft.named_parameters() if not name.endswith(ORDERING)]
        shapes |= {f"draft.{name}": stored_draft_shape(draft, name) for name in names}
    return Parameters(Compression.of(decoder.recipe), shapes)


def raw_tables(decoder: Decoder) -> Parameters:
    """The tables that a host reads."""
    shapes = {name: tuple(decoder.get_parameter(name).shape) for name in decoder.tables}
    return Parameters(Compression.of(decoder.recipe), shapes)


def own_parameters(decoder: Decoder, draft: Draft | None = None) -> Parameters:
    """Those of weight.bin and the raw tables in a checkpoint's own shapes, to which nothing is added."""
    named = list(decoder.named_parameters())
    named += [(f"draft.{name}", p) for name, p in draft.named_parameters()] if draft is not None else []
    shapes = {name: tuple(parameter.shape) for name, parameter in named if not name.endswith(ORDERING)}
    return Parameters(Compression.of(decoder.recipe), shapes)


def stored_shape(decoder: Decoder, name: str) -> Shape:
    """The shape in which a package holds a parameter: what the head reads has as many rows as its pieces."""
    shape, model = tuple(decoder.get_parameter(name).shape), decoder.recipe.model
    if name in ("embedding.weight" if model.head.tied else "head.weight", "head.bias"):
        return (Pieces(model.vocab_size).rows, *shape[1:])
    return shape


def stored_draft_shape(draft: Draft, name: str) -> Shape:
    """As `stored_shape`, of a parameter of the draft. A head whose rows are gathered needs no others."""
    shape = tuple(draft.get_parameter(name).shape)
    is_padded = name == "head.weight" and draft.clusters is None
    return (Pieces(draft.spec.vocab_size).rows, *shape[1:]) if is_padded else shape
