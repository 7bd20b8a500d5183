"""The float16 weights of an .aimodel, held to the bit to the checkpoint: one wrong bit of one is lost in any figure."""

from collections.abc import Iterator

from coreai_recipes.decoder.model import exported_form
from coreai_recipes.decoder.stacks import build_stacks
from coreai_recipes.running.asset_weights import differing
from coreai_recipes.storage.compression import FLOAT16
from coreai_recipes.storage.parameters import raw_tables, stored_parameters
from coreai_recipes.storage.reading import PackedWeight, StoredWeight, stored_weights
from coreai_recipes.verification.subject import Subject


def others_than_stored(subject: Subject) -> list[str]:
    """The parameters that are not stored as what the exporter writes of the checkpoint, by their names in the asset.

    Those of the stacks whose checkpoints are at hand. Compressed weights are held by stage `decompressed`, and those
    that were fitted to a text follow from no checkpoint.
    """
    (asset,) = subject.packages  # of that format there is one
    return differing(asset, {name: weight.encoded() for name, weight in _float16_weights(subject)})


def _float16_weights(subject: Subject) -> Iterator[tuple[str, StoredWeight]]:
    stacks = build_stacks(subject.recipe, exported_form(subject.recipe))
    beside = raw_tables(stacks).shapes.keys()  # which an asset need not have
    there = stored_parameters(stacks).shapes.keys() - beside
    for key, source in subject.sources.items():
        prefix = subject.recipe.stacks[key].prefix
        for name, weight in stored_weights(subject.recipe, source, key, subject.package).items():
            if isinstance(weight, PackedWeight) or not isinstance(weight, StoredWeight):
                continue
            if prefix + name in there and weight.storage == FLOAT16:
                yield prefix + name, weight
