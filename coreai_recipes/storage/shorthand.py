"""`--bits N`: the `compress` that a recipe gets, written out for its own matrices as a reader would write it."""

from math import prod
from typing import Any

from coreai_recipes.decoder.model import PER_LAYER_TABLE
from coreai_recipes.decoder.stacks import build_stacks
from coreai_recipes.recipe import Recipe
from coreai_recipes.recipe.compress_rules import check_bits
from coreai_recipes.recipe.schema import Compress, StorageRule, StoredIntegers, StoredPalette
from coreai_recipes.storage.compression import FLOAT16, Rule, any_layer, is_compressible, shown_name
from coreai_recipes.storage.parameters import own_parameters

FEW_WEIGHTS = 65_536  # a matrix of fewer is stored as it is: it costs next to nothing, and is often sensitive
GROUP = 16
TIED_BITS = 6  # of a table that is the head too: at 4 it loses more than all other matrices
INTEGER_BITS = 8  # clusters as many as that are slow to find, and no better than integers with a scale


def with_bits(recipe: Recipe, bits: int) -> Recipe:
    """The recipe with its matrices in palettes of so many bits, whatever its own `compress` says of them."""
    check_bits(bits)
    said: dict[str, Any] = {
        "default": StoredIntegers(kind="int8") if bits == INTEGER_BITS else _palette(bits),
        "rules": _rules(recipe, bits),
    }
    before = recipe.compress
    compress = Compress.model_validate(said) if before is None else before.model_copy(update=said)
    return recipe.model_copy(update={"compress": compress})


def why_nothing(recipe: Recipe) -> str | None:
    """Why `with_bits` compresses none of the recipe's matrices, None where it does."""
    parameters = own_parameters(build_stacks(recipe))
    storages = (parameters.compression.storage(name, shape) for name, shape in parameters.shapes.items())
    if any(storage is not FLOAT16 for storage in storages):
        return None
    return f"--bits compresses nothing here: no matrix has {FEW_WEIGHTS:,} weights; `compress` in the recipe does"


def _palette(bits: int) -> StoredPalette:
    return StoredPalette.model_validate({"kind": "palettize", "bits": bits, "group": GROUP})


def _rules(recipe: Recipe, bits: int) -> list[StorageRule] | None:
    shapes = own_parameters(build_stacks(recipe)).shapes
    matrices = {name: prod(shape) for name, shape in shapes.items() if is_compressible(name, shape)}
    rules = []
    if recipe.model.head.tied and bits < TIED_BITS and matrices["embedding.weight"] >= FEW_WEIGHTS:
        rules.append(StorageRule.model_validate({"match": "embedding", "bits": TIED_BITS}))
    per_layer = recipe.model.embedding.per_layer
    if per_layer is not None and prod(shapes[PER_LAYER_TABLE]) >= FEW_WEIGHTS:
        # a host's rows cost the engine nothing: a scale for each layer's part, and hardly a loss
        said = {"match": shown_name(PER_LAYER_TABLE), "kind": "int8", "block": per_layer.size}
        rules.append(StorageRule.model_validate(said))
    rules += [StorageRule(match=pattern, kind="float16") for pattern in _patterns_of_small(matrices)]
    return rules or None


def _patterns_of_small(matrices: dict[str, int]) -> list[str]:
    """Patterns that match the matrices of few weights and no other: those of all layers, where all are small."""
    found: dict[str, None] = {}
    for name, weights in matrices.items():
        if weights < FEW_WEIGHTS:
            every = Rule(any_layer(name), FLOAT16)
            alike = all(size < FEW_WEIGHTS for other, size in matrices.items() if every.matches(other))
            found[every.pattern if alike else shown_name(name)] = None
    return list(found)
