"""The oldest system of a package, in the words of each part of Core ML, against coremltools' own tables."""

from typing import get_args

from coreai_recipes.recipe.schema.export import CoreMLExport
from coreai_recipes.targets.coreml.version import DEPLOYMENT_TARGET, OPSET, SPECIFICATION_VERSION


def test_the_version_is_said_in_the_same_words_by_the_recipe_and_by_coremltools() -> None:
    import coremltools

    target = getattr(coremltools.target, DEPLOYMENT_TARGET)
    assert (coremltools._OPSET[target], int(target)) == (OPSET, SPECIFICATION_VERSION)
    assert get_args(CoreMLExport.model_fields["target"].annotation) == (DEPLOYMENT_TARGET,)
