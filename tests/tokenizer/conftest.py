"""A folder with tiny-llama's tokenizer."""

import shutil
from pathlib import Path

import pytest
from tokenizer_folders import TEMPLATE, TINY, edit


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """The tiny checkpoint with a template, whose tokenizer's files a test then changes."""
    folder = tmp_path / "checkpoint"
    shutil.copytree(TINY, folder)
    edit(folder / "tokenizer_config.json", chat_template=TEMPLATE)
    return folder
