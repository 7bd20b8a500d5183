"""Folders of safetensors, and what is said of those that are refused."""

import shutil
from pathlib import Path


def copy_of(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))
