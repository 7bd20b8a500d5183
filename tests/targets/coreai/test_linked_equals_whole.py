"""A linked asset against coreai-torch's conversion of the whole module: the same to the bit by Apple's runtime.
`python -m bench coreai` says it of gemma4-tiny and of Qwen3-0.6B's shape too."""

from pathlib import Path

import pytest

from bench.children.naive_coreai import convert_whole, filled
from bench.children.same_answers import differences
from coreai_recipes.checkpoint.open import open_checkpoint
from coreai_recipes.recipe import load_resolved

CHECKPOINT = Path(__file__).parents[2] / "checkpoints/tiny-llama"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    recipe = load_resolved("tiny-llama", ["export.format=coreai"]).recipe
    asset = tmp_path_factory.mktemp("whole") / "whole.aimodel"
    decoder = filled(recipe, open_checkpoint(CHECKPOINT))
    convert_whole(decoder, asset)
    return asset


def test_linked_and_whole_are_the_same_to_the_bit(bundle: Path, whole: Path) -> None:
    assert differences(bundle / "model.aimodel", whole, 512) == []
