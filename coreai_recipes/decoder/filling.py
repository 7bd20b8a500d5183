"""The parameters of a stack and the checkpoint's tensors that fill them: where a model meets its weights."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Protocol

from torch import Tensor, nn

from coreai_recipes.checkpoint.adapted import Unmerged
from coreai_recipes.checkpoint.base import TIE_FLAG, Checkpoint, stated_flag
from coreai_recipes.decoder.low_rank import Pair, matrices_of_layers
from coreai_recipes.decoder.model import Decoder, fill
from coreai_recipes.decoder.stack import StackModule
from coreai_recipes.primitives.causal_conv import CausalConvolution
from coreai_recipes.primitives.head import Head
from coreai_recipes.primitives.layer import POINTWISE
from coreai_recipes.primitives.projection import Projection
from coreai_recipes.recipe.schema import Recipe
from coreai_recipes.weights.binding import Binding, ParameterInfo, bind
from coreai_recipes.weights.computed import FadingBinding, LambdaBinding, SinesBinding
from coreai_recipes.weights.folding import stored_as
from coreai_recipes.weights.low_rank import bind_low_rank
from coreai_recipes.weights.regrouping import regrouped
from coreai_recipes.weights.tying import judge_head

POSITIONS = "embedding.positions.weight"
FADING = ".attention.fading"  # of heads that forget at fixed rates


class Weight(Protocol):
    """What fills a parameter: a checkpoint's tensor as it is bound, or what a package makes of it."""

    @property
    def tensor(self) -> str:
        """The name of the checkpoint's tensor."""

    def blocks(self) -> Iterator[Tensor]:
        """Blocks along the first axis, each valid until the next."""

    def read(self) -> Tensor:
        """All of it, a copy of its own."""

    def read_rows(self, rows: Sequence[int]) -> Tensor:
        """Some rows of the first axis."""


def settle_head(recipe: Recipe, checkpoint: Checkpoint) -> tuple[Recipe, str | None]:
    """The recipe with a head of its own where it ties one that the checkpoint has with other values than its table's;
    and a line that says so, or that the headers alone do not say it."""
    if not recipe.model.head.tied or checkpoint.says_untied:  # `bind` refuses a tie that the config denies
        return recipe, None
    found, tensor = judge_head(checkpoint, recipe.weights.names)
    if found == "undecided":
        beside = f"{TIE_FLAG}: true" if stated_flag(checkpoint.config) else "the table that it is tied to"
        return recipe, (
            f"model.head.tied: true, and {tensor} is there beside {beside}: "
            "headers do not say whether they are equal, `recipe build` compares their values and decides"
        )
    if found != "own":
        return recipe, None
    return _with_tie(recipe, False), (
        f"model.head.tied: false, for {tensor} is there and is not the table: transformers does not tie them either"
    )


def describe_head(recipe: Recipe, checkpoint: Checkpoint) -> tuple[Recipe, str | None]:
    """As `settle_head`, for a recipe that is being made of the checkpoint: where its format has no word for a tie, as
    GGUF, a head that is a copy of the table is tied."""
    is_silent = not recipe.model.head.tied and not checkpoint.says_untied and stated_flag(checkpoint.config) is False
    if not is_silent:
        return settle_head(recipe, checkpoint)
    found, tensor = judge_head(checkpoint, recipe.weights.names)
    if found != "copy":
        return recipe, None
    return _with_tie(recipe, True), f"model.head.tied: true, for {tensor} is a copy of the table"


def _with_tie(recipe: Recipe, tied: bool) -> Recipe:
    head = recipe.model.head.model_copy(update={"tied": tied})
    return recipe.model_copy(update={"model": recipe.model.model_copy(update={"head": head})})


def bind_weights(stack: StackModule, checkpoint: Checkpoint) -> dict[str, Binding]:
    """Where each parameter of `stack` is read from. Raises CheckpointError with every tensor that does not fit."""
    said = stack.of.layers
    wanted = {}
    shapes = checkpoint_shapes(stack)
    computed = _computed(stack, checkpoint, shapes)
    for name, shape in shapes.items():
        if name in computed:
            continue
        kind = said.layer_kinds[int(name.split(".")[1])] if name.startswith("layers.") else None
        attention = said.kinds[kind].attention if kind else None
        kv_heads, heads = (attention.num_kv_heads, attention.num_heads) if attention else (1, 1)
        rewrite = stored_as(stack.recipe, name, stack.form, stack.of.key)
        wanted[name] = ParameterInfo(shape, kind, rewrite, name in stack.whole_numbers, kv_heads, heads)
    found = bind(wanted, stack.of.weights.names, checkpoint, unused=stack.unused())
    for name in made_of(stack):
        joined, layer = found[name], int(name.split(".")[1])
        found[name] = LambdaBinding(checkpoint, joined.tensor, (1,), join=joined.join, layer=layer)
    found |= computed
    if stack.form.regrouped:
        for index, kind in enumerate(said.layer_kinds):
            if said.kinds[kind].mlp.kind in POINTWISE:
                found |= regrouped(found, f"layers.{index}.mlp.")
    return found


def _computed(stack: StackModule, checkpoint: Checkpoint, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Binding]:
    """What fills the parameters of which a checkpoint need have nothing."""
    layers = len(stack.of.layers.layer_kinds)
    found: dict[str, Binding] = {
        name: FadingBinding(checkpoint, name, shape, layer=int(name.split(".")[1]), layers=layers)
        for name, shape in shapes.items()
        if name.endswith(FADING)
    }
    positions = stack.recipe.model.embedding.positions
    if positions is not None and positions.sines is not None and POSITIONS in shapes:
        found[POSITIONS] = SinesBinding(checkpoint, POSITIONS, shapes[POSITIONS], spec=positions)
    return found


def bind_stacks(stacks: Iterable[StackModule], sources: Mapping[str, Checkpoint]) -> dict[str, Binding]:
    """As `bind_weights`, of all that have a checkpoint in `sources`, by their names in a package."""
    return {
        stack.of.prefix + name: binding
        for stack in stacks
        if stack.of.key in sources
        for name, binding in bind_weights(stack, sources[stack.of.key]).items()
    }


def low_rank_factors(recipe: Recipe, checkpoint: Checkpoint, adapter: Unmerged) -> dict[str, Pair]:
    """A (rank, in) and B (out, rank) by matrix of what an adapter adds to the recipe's Decoder, float32. Raises
    CheckpointError where it is no part of the model."""
    bindings = bind_weights(Decoder.build(recipe), checkpoint)
    found = bind_low_rank(bindings, adapter.alone, matrices_of_layers(recipe))
    return {matrix: each.read() for matrix, each in found.items()}


def checkpoint_shapes(module: StackModule) -> dict[str, tuple[int, ...]]:
    """The shape that a checkpoint has of each parameter, or of the vectors together of which one is made."""
    return flat_shapes(module) | made_of(module)


def made_of(module: StackModule) -> dict[str, tuple[int, ...]]:
    """Parameters that are made of a checkpoint's vectors, and how long these are together."""
    return {
        f"{owner}.{name}": shape
        for owner, part in module.named_modules()
        for name, shape in getattr(part, "made_of", {}).items()
    }


def flat_shapes(module: StackModule) -> dict[str, tuple[int, ...]]:
    """The shape of each parameter: matrices without the 1 x 1 of a convolution, vectors flat."""
    shapes = {}
    for name, parameter in module.named_parameters():
        shape = tuple(parameter.shape)
        owner = module.get_submodule(name.rpartition(".")[0])
        is_matrix = isinstance(owner, Projection | Head) or getattr(owner, "rows", None) is not None
        if is_matrix and len(shape) == 4:
            shape = shape[:2]
        elif isinstance(owner, CausalConvolution) and len(shape) == 4 and shape[2] > 1:
            shape = (shape[1], 1, shape[2])
        elif len(shape) == 4 and shape[0] == shape[3] == 1 and min(shape[1:3]) > 1:  # of each channel and number
            shape = shape[1:3]
        elif name in module.whole_numbers or (len(shape) > 2 and parameter.numel() == max(shape)):
            shape = (parameter.numel(),)
        shapes[name] = shape
    return shapes


def left_out(bindings: Mapping[str, Binding], checkpoint: Checkpoint) -> list[str]:
    """What of `checkpoint` fills nothing, a line a part: `312 tensors of model.vision_tower`."""
    used = {name for binding in bindings.values() if binding.checkpoint is checkpoint for name in binding.tensors}
    parts: Counter[str] = Counter()
    for name in checkpoint.tensors.keys() - used:
        before, _, after = name.partition(".layers.")
        is_of_text = before in ("model", "model.language_model", "language_model.model")
        words = name.split(".")
        if is_of_text and after:  # keys and values that nobody computes, in layers that share them
            parts[".".join((before, "layers", "*", *words[words.index("layers") + 2 : -1]))] += 1
        else:
            parts[".".join(words[: min(2, len(words) - 1)]) or name] += 1
    return [f"{count} tensor{'s' if count > 1 else ''} of {part}" for part, count in sorted(parts.items())]


def fill_from(module: nn.Module, weights: Mapping[str, Weight], prefix: str = "") -> None:
    """Fill `module`, whose parameters are `prefix` + their name in `weights`, in float32."""
    fill(module, lambda name: weights[name].read(), prefix)
