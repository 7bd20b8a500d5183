"""A place to build into, and builds in it, here and in a process of its own."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from sealed_folders import seal

import coreai_recipes
from coreai_recipes.errors import BundleError
from coreai_recipes.manifest import staging
from coreai_recipes.manifest.staging import staged_folder

PACKAGE_PARENT = str(Path(coreai_recipes.__file__).parents[1])


TESTS = str(Path(__file__).parents[1])


BUILD_IN_A_CHILD = """
import errno, json, os, signal, sys
from pathlib import Path
from coreai_recipes.manifest import staging
from sealed_folders import seal

target, old_or_new, fault, *arguments = sys.argv[1:]
signal.signal(signal.SIGINT, signal.default_int_handler)  # a test runner may have us ignore it

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def before_call(module, name, number, act):
    real, calls = getattr(module, name), []
    def wrapped(*args, **kwargs):
        calls.append(name)
        if len(calls) == number:
            act()
        return real(*args, **kwargs)
    setattr(module, name, wrapped)

def without_exchange():
    def refused(one, other):
        raise OSError(errno.EINVAL, "Invalid argument")
    staging._exchange = refused

def build(in_the_block=lambda folder: None):
    with staging.staged_folder(Path(target)) as folder:
        in_the_block(folder)
        (folder / "model").mkdir()
        (folder / "model" / "weight.bin").write_text(old_or_new * 1000)
        seal(folder, version=old_or_new)

exec(fault)
"""


def python(code: str, *arguments: str | Path, prefix: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    command = [*prefix, sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join((PACKAGE_PARENT, TESTS))}


def write_bundle(folder: Path, content: str) -> None:
    (folder / "model").mkdir()
    (folder / "model" / "weight.bin").write_text(content * 1000)
    seal(folder, version=content)


def build(target: Path, content: str) -> None:
    with staged_folder(target) as folder:
        write_bundle(folder, content)


def bundle_at(target: Path) -> str:
    """The content of a bundle, after a check that all of it is of one build."""
    content = str(json.loads((target / "manifest.json").read_text())["version"])
    assert sorted(path.name for path in target.iterdir()) == ["manifest.json", "model", "recipe.yaml"]
    assert (target / "model" / "weight.bin").read_text() == content * 1000
    return content


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def refuse_exchange(monkeypatch: pytest.MonkeyPatch, code: int = errno.ENOSYS) -> None:
    def refused(one: Path, other: Path) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(staging, "_exchange", refused)


def refused(target: Path) -> str:
    with pytest.raises(BundleError) as told, staged_folder(target):
        pytest.fail("the block must not be entered")
    return str(told.value)
