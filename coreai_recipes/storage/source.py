"""`compress.default: source`: written out as rules, once the checkpoint that has the forms is known."""

from collections.abc import Iterator, Mapping, Sequence
from math import frexp, prod

from coreai_recipes.checkpoint.base import Checkpoint, Grid
from coreai_recipes.decoder.filling import bind_stacks
from coreai_recipes.decoder.model import exported_form
from coreai_recipes.decoder.stacks import build_stacks
from coreai_recipes.errors import CheckpointError
from coreai_recipes.recipe import Recipe
from coreai_recipes.recipe.schema import MODEL, StorageRule, StoredFloat16, StoredSource
from coreai_recipes.storage.base import Shape, axis_of_row
from coreai_recipes.storage.compression import FLOAT16, Rule, any_layer, is_compressible, shown_name
from coreai_recipes.storage.integers import Integers
from coreai_recipes.storage.parameters import stored_parameters
from coreai_recipes.weights.binding import Binding

WORDS = "compress.default: source"
FLOATS = {"F64", "F32", "F16", "BF16"}
NOT_PACKED = "none of its weights are in a form that a package holds"


def is_source(recipe: Recipe) -> bool:
    return recipe.compress is not None and isinstance(recipe.compress.default, StoredSource)


def without_source(recipe: Recipe) -> Recipe:
    """The recipe with float16 in place of `source`."""
    if recipe.compress is None or not is_source(recipe):
        return recipe
    said = recipe.compress.model_copy(update={"default": StoredFloat16(kind="float16")})
    return recipe.model_copy(update={"compress": said})


def with_source(recipe: Recipe, sources: Mapping[str, Checkpoint]) -> tuple[Recipe, tuple[str, ...]]:
    """The recipe with a rule for each form that a package holds to the bit, below its own rules; and what is to be said
    of that. Nothing is fitted to a text: numbers stay what they are.

    Raises CheckpointError where the model's checkpoint has no such matrix.
    """
    if recipe.compress is None or not is_source(recipe):
        return recipe, ()
    plain = without_source(recipe)
    stacks = build_stacks(plain, exported_form(plain))
    bindings = bind_stacks(stacks, sources)
    matrices = {name: shape for name, shape in stored_parameters(stacks).shapes.items() if is_compressible(name, shape)}
    forms = {name: _form_of(bindings[name], shape) for name, shape in matrices.items() if name in bindings}
    held = {name: form for name, form in forms.items() if form is not None}
    if not held:
        source = sources[MODEL]
        why = f"a package holds none of its forms to the bit ({source.packing})" if source.packing else NOT_PACKED
        raise CheckpointError(
            f"{source.place}: {WORDS}: {why}\n  leave `compress` out for float16, or compress anew: `--bits 4`"
        )
    rules = [*_rules(forms), *(recipe.compress.rules or ())]
    update = {"default": StoredFloat16(kind="float16"), "rules": rules, "calibration": None}
    unheld = {
        bindings[name].checkpoint.tensors[tensor].dtype
        for name, form in forms.items()
        if form is None
        for tensor in bindings[name].tensors
    }
    notes = [_in_words(held, matrices, sorted(unheld - FLOATS))]
    if _is_for_engine(recipe) and any(form.block is not None for form in held.values()):
        notes.append(
            f"{WORDS}: integers for blocks were seen wrong on the Neural Engine, or run on the GPU: "
            "compress anew for it, `--bits 4`"
        )
    return recipe.model_copy(update={"compress": recipe.compress.model_copy(update=update)}), tuple(notes)


def _form_of(binding: Binding, shape: Shape) -> Integers | None:
    """The integers that hold a parameter to the bit, None where it is not on one grid of its checkpoint."""
    rewrite = binding.rewrite
    # a factor that is no power of two takes scales off float16; columns in another order, off their blocks
    if rewrite.offset or rewrite.function or rewrite.column_order is not None:
        return None
    if rewrite.multiplier != 1.0 or frexp(rewrite.factor)[0] != 0.5:
        return None
    grids: set[Grid | None] = {binding.checkpoint.grid(tensor) for tensor in binding.tensors}
    grid = grids.pop() if len(grids) == 1 else None
    if grid is None or grid.transposed is not binding.transpose:
        return None
    width = shape[axis_of_row(shape)]
    form = Integers(grid.bits, None if grid.block == width else grid.block, grid.symmetric)
    return form if form.fitted(shape) == form else None


def _rules(forms: Mapping[str, Integers | None]) -> Iterator[StorageRule]:
    """A rule for all layers where they are alike, else one for each matrix."""
    said: set[str] = set()
    for name, form in forms.items():
        every = Rule(any_layer(name), FLOAT16)
        alike = {other for matched, other in forms.items() if every.matches(matched)} == {form}
        pattern = every.pattern if alike else shown_name(name)
        if form is None or pattern in said:
            continue
        said.add(pattern)
        fields = {"block": form.block, "symmetric": None if form.symmetric else False}
        yield StorageRule.model_validate(
            {"match": pattern, "kind": form.kind} | {key: value for key, value in fields.items() if value is not None}
        )


def _in_words(held: Mapping[str, Integers], matrices: Mapping[str, Shape], unheld: Sequence[str]) -> str:
    """`unheld` are the checkpoint's names of forms that are not held."""
    kinds = " and ".join(sorted({str(form) for form in held.values()}))
    rest = len(matrices) - len(held)
    share = sum(prod(matrices[name]) for name in held) / sum(map(prod, matrices.values()))
    why = f": a package cannot hold {' or '.join(unheld)} to the bit" if unheld else ""
    others = f"; the other{'s are' if rest > 1 else ' is'} float16{why}" if rest else ""
    count = f"{len(held)} of {len(matrices)} matrices ({share:.0%} of weights)"
    return f"{WORDS}: {count} as the checkpoint has them, in {kinds}{others}"


def _is_for_engine(recipe: Recipe) -> bool:
    units = recipe.export.compute_units
    return units == "cpu_and_ne" or (recipe.export.device is not None and units != "cpu_and_gpu")
