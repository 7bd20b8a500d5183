"""Checkpoints of safetensors, in one file and in shards."""

from pathlib import Path

import pytest
from checkpoint_files import save_model


@pytest.fixture(scope="module")
def single(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("single") / "model"
    save_model(folder, dtype="bfloat16")
    return folder


@pytest.fixture(scope="module")
def sharded(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sharded") / "model"
    save_model(folder, shard="60KB")
    return folder
