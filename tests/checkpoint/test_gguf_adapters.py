"""An adapter over a GGUF file is merged into its tensors as peft merges it into what transformers reads of them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGMLQuantizationType
from gguf_configs import CONFIGS
from gguf_files import random_model, write_gguf
from small_adapters import save_adapter

from coreai_recipes.checkpoint.adapted import AdaptedCheckpoint, Unmerged
from coreai_recipes.checkpoint.adapter import Adapter
from coreai_recipes.checkpoint.open import open_checkpoint
from coreai_recipes.planning.authoring import new_recipe
from coreai_recipes.verification import run_stages

MATRICES = ["q_proj", "k_proj", "down_proj"]  # llama.cpp puts the rows of q and k in another order


def in_eight_bits(name: str, tensor: torch.Tensor) -> GGMLQuantizationType:
    return GGMLQuantizationType.F32 if tensor.ndim == 1 or tensor.shape[1] % 32 else GGMLQuantizationType.Q8_0


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    architecture, config = CONFIGS["llama"]
    path = tmp_path_factory.mktemp("gguf") / "llama.gguf"
    return write_gguf(path, architecture, config, random_model(config).state_dict(), in_eight_bits)


@pytest.fixture(scope="module")
def theirs(file: Path) -> Any:
    """transformers' model of the file."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)


@pytest.mark.parametrize("settings", [{}, {"use_dora": True}])
def test_a_merge_is_that_of_peft_into_what_transformers_reads(
    file: Path, theirs: Any, settings: dict[str, Any], tmp_path: Path
) -> None:
    merged = save_adapter(theirs, tmp_path, size=0.5, target_modules=MATRICES, **settings).merge_and_unload()
    ours, stored = AdaptedCheckpoint(open_checkpoint(file), [(Adapter(tmp_path), 1.0)]), merged.state_dict()
    assert {ours.base.tensors[name].dtype for name in ours.changed} == {"Q8_0"}
    assert len(ours.changed) == len(MATRICES) * len(theirs.model.layers)
    for name in ours.tensors:
        assert torch.equal(ours.read(name).float(), stored[name]), name


def test_the_proof_is_of_what_peft_and_transformers_make_of_the_file(file: Path, theirs: Any, tmp_path: Path) -> None:
    save_adapter(theirs, tmp_path, size=0.5, target_modules=MATRICES)
    merged = AdaptedCheckpoint(open_checkpoint(file), [(Adapter(tmp_path), 0.5)])
    (stage,) = run_stages(new_recipe(file).recipe, merged, None, stages=["torch"]).stages
    assert stage.passed, stage.to_json()
    made_of = stage.detail["reference"]
    assert (made_of["tensors"], made_of["adapters"]) == ("transformers", "merged by peft")


def test_an_adapter_that_is_handed_in_may_stand_over_a_file(file: Path, theirs: Any, tmp_path: Path) -> None:
    save_adapter(theirs, tmp_path, size=0.5, target_modules=MATRICES)
    beside = Unmerged(open_checkpoint(file), Adapter(tmp_path), 1.0)
    for name in beside.alone.changed:
        a, b = beside.alone.factors(name)
        torch.testing.assert_close(beside.alone.base.read(name) + b @ a, beside.merged.read(name), rtol=0, atol=1e-6)
