"""The same recipe and checkpoint give the same files, byte for byte, in whichever process they are built."""

import os
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CHECKPOINTS = {"tiny-llama": ROOT / "tests/checkpoints/tiny-llama", "gemma4-tiny": ROOT / "examples/gemma4-tiny"}


def build_in_a_process(name: str, folder: Path, seed: int, cache: Path | None) -> dict[str, str]:
    """The digest of each file of the bundle that `recipe build` makes in a process of its own, run in `folder`."""
    folder.mkdir()
    command = [sys.executable, "-W", "ignore", str(ROOT / "cli.py"), "build", name]
    command += ["--checkpoint", str(CHECKPOINTS[name]), "--out", "out", "--no-verify"]
    environment = {**os.environ, "PYTHONHASHSEED": str(seed), "OMP_NUM_THREADS": str(seed)}
    environment["RECIPE_CACHE"] = str(cache or folder / "unused")
    command += [] if cache else ["--no-cache"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    bundle = folder / "out" / name
    files = sorted(path for path in bundle.rglob("*") if path.is_file())
    return {path.relative_to(bundle).as_posix(): sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_every_process_builds_the_same_bytes_with_and_without_cached_fragments(name: str, tmp_path: Path) -> None:
    """The linker used to walk protobuf's maps, whose order is another one in each process."""
    cache = tmp_path / "cache"
    without = build_in_a_process(name, tmp_path / "without", 1, None)
    filling = build_in_a_process(name, tmp_path / "filling", 2, cache)
    assert list((cache / "fragments").glob("*.fragment"))
    filled = build_in_a_process(name, tmp_path / "filled", 3, cache)
    assert {"model.mlpackage/Data/com.apple.CoreML/model.mlmodel", "manifest.json", "recipe.yaml"} <= set(without)
    assert filling == without
    assert filled == without
