"""A small Llama's checkpoint."""

import pytest
from checkpoint_files import save_model

from coreai_recipes.checkpoint.safetensors import SafetensorsCheckpoint


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> SafetensorsCheckpoint:
    folder = tmp_path_factory.mktemp("llama") / "model"
    save_model(folder, num_hidden_layers=12)
    return SafetensorsCheckpoint(folder)
