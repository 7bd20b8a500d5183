"""A build that fails, is stopped or killed leaves a whole bundle; two at once know of each other."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from staged_places import (
    BUILD_IN_A_CHILD,
    build,
    bundle_at,
    environment,
    names_in,
    python,
    refuse_exchange,
    write_bundle,
)

from coreai_recipes.errors import BundleError
from coreai_recipes.manifest import staging
from coreai_recipes.manifest.staging import recover, remove_leftovers, staged_folder

READ_IN_A_CHILD = """
import sys
from pathlib import Path
from coreai_recipes.manifest import staging
staging.time.sleep = lambda seconds: print("waiting", flush=True)
target = Path(sys.argv[1])
staging.recover(target)
import json
print(json.loads((target / "manifest.json").read_text())["version"])
"""


# Failing


@pytest.mark.usefixtures("way")
def test_an_exception_leaves_the_bundle_as_it_was(dist: Path) -> None:
    build(dist / "llama", "old")

    def fail() -> None:
        with staged_folder(dist / "llama") as folder:
            write_bundle(folder, "new")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert bundle_at(dist / "llama") == "old"
    assert names_in(dist) == ["llama"]


INTERRUPT = "lambda *_: signal.raise_signal(signal.SIGINT)"


@pytest.mark.parametrize(
    "fault",
    [
        f"build({INTERRUPT})",
        f"before_call(staging, '_exchange', 1, {INTERRUPT}); build()",
        f"without_exchange(); before_call(os, 'rename', 1, {INTERRUPT}); build()",
        f"without_exchange(); before_call(os, 'rename', 2, {INTERRUPT}); build()",
    ],
    ids=["in the block", "before the exchange", "before the first rename", "between the two renames"],
)
def test_ctrl_c_leaves_the_bundle_as_it_was(dist: Path, fault: str) -> None:
    build(dist / "llama", "old")
    done = python(BUILD_IN_A_CHILD, dist / "llama", "new", fault)
    assert done.stderr.rstrip().endswith("KeyboardInterrupt")
    assert bundle_at(dist / "llama") == "old"
    assert names_in(dist) == ["llama"]


KILLED = {
    "before anything is written": ("build(lambda folder: die())", "old"),
    "in the middle of a file": (
        "build(lambda folder: ((folder / 'manifest.json').write_text('ne'), die()))",
        "old",
    ),
    "before the first fsync": ("before_call(os, 'fsync', 1, die); build()", "old"),
    "after fsync, before the exchange": ("before_call(staging, '_exchange', 1, die); build()", "old"),
    "after the exchange": ("before_call(staging.shutil, 'rmtree', 1, die); build()", "new"),
    "before the first rename": ("without_exchange(); before_call(os, 'rename', 1, die); build()", "old"),
    "between the two renames": ("without_exchange(); before_call(os, 'rename', 2, die); build()", "old"),
    "after the two renames": ("without_exchange(); before_call(os, 'rename', 3, die); build()", "new"),
    "after the renames, before the old is removed": (
        "without_exchange(); before_call(staging.shutil, 'rmtree', 1, die); build()",
        "new",
    ),
}


@pytest.mark.parametrize("moment", KILLED)
def test_a_killed_build_leaves_a_whole_bundle(dist: Path, moment: str) -> None:
    fault, expected = KILLED[moment]
    build(dist / "llama", "old")
    done = python(BUILD_IN_A_CHILD, dist / "llama", "new", fault)
    assert done.returncode == -signal.SIGKILL, done.stderr
    recover(dist / "llama")
    assert bundle_at(dist / "llama") == expected
    build(dist / "llama", "third")
    assert bundle_at(dist / "llama") == "third"
    assert names_in(dist) == ["llama"]


@pytest.mark.parametrize("moment", KILLED)
def test_the_build_after_a_killed_one_needs_no_other_command_between(dist: Path, moment: str) -> None:
    build(dist / "llama", "old")
    python(BUILD_IN_A_CHILD, dist / "llama", "new", KILLED[moment][0])
    with pytest.raises(ZeroDivisionError), staged_folder(dist / "llama"):
        raise ZeroDivisionError
    assert bundle_at(dist / "llama") == KILLED[moment][1]
    assert names_in(dist) == ["llama"]


def test_a_first_build_that_is_killed_leaves_no_bundle(dist: Path) -> None:
    python(BUILD_IN_A_CHILD, dist / "llama", "new", "before_call(os, 'rename', 1, die); build()")
    recover(dist / "llama")
    assert not (dist / "llama").exists()
    assert all(name.startswith(".llama.") for name in names_in(dist))


def test_a_removed_bundle_is_not_brought_back_by_leftovers(dist: Path) -> None:
    build(dist / "llama", "old")
    kill_while_removing = "without_exchange(); before_call(staging.shutil, 'rmtree', 1, die); build()"
    python(BUILD_IN_A_CHILD, dist / "llama", "new", kill_while_removing)
    shutil.rmtree(dist / "llama")
    recover(dist / "llama")
    assert not (dist / "llama").exists()


def test_half_of_an_old_bundle_is_never_put_back(dist: Path) -> None:
    build(dist / "llama", "old")
    python(BUILD_IN_A_CHILD, dist / "llama", "new", KILLED["after the two renames"][0])
    assert ".llama.previous" in names_in(dist)
    python(BUILD_IN_A_CHILD, dist / "llama", "new", "before_call(staging.shutil, 'rmtree', 1, die); build()")
    shutil.rmtree(dist / "llama")
    recover(dist / "llama")
    assert not (dist / "llama").exists()


def test_recover_without_a_half_done_exchange_touches_nothing(tmp_path: Path) -> None:
    recover(tmp_path / "nowhere" / "llama")
    assert names_in(tmp_path) == []


def test_recover_waits_for_a_live_exchange(dist: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that comes between the two renames of a live builder reads the new bundle."""
    refuse_exchange(monkeypatch)
    build(dist / "llama", "old")
    real_rename = os.rename
    readers: list[subprocess.Popen[str]] = []

    def rename(one: Path, other: Path) -> None:
        if other == dist / "llama":
            command = [sys.executable, "-c", READ_IN_A_CHILD, str(dist / "llama")]
            readers.append(subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True))
            assert readers[0].stdout is not None
            assert readers[0].stdout.readline() == "waiting\n"
        real_rename(one, other)

    monkeypatch.setattr(staging.os, "rename", rename)
    build(dist / "llama", "new")
    (reader,) = readers
    assert reader.communicate()[0].split()[-1] == "new"


# Two at once


@pytest.fixture
def live_builder(dist: Path) -> Iterator[subprocess.Popen[str]]:
    """A process inside its block, building dist/llama; a line on its standard input lets it finish."""
    build(dist / "llama", "old")
    half = "folder / 'half'"
    wait = f"build(lambda folder: (({half}).touch(), print(folder, flush=True), input(), ({half}).unlink()))"
    command = [sys.executable, "-c", BUILD_IN_A_CHILD, str(dist / "llama"), "new", wait]
    with subprocess.Popen(
        command, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as builder:
        yield builder


def staging_of(builder: subprocess.Popen[str]) -> Path:
    assert builder.stdout is not None
    return Path(builder.stdout.readline().strip())


def test_a_second_build_of_one_name_is_told_who_builds_it(dist: Path, live_builder: subprocess.Popen[str]) -> None:
    theirs = staging_of(live_builder)
    with pytest.raises(BundleError) as told:
        build(dist / "llama", "mine")
    assert str(told.value) == (
        f"{dist / 'llama'} is being built by process {live_builder.pid}; wait for it, or choose another --out"
    )
    assert (theirs / "half").exists()  # a live builder's folder is never cleaned
    assert bundle_at(dist / "llama") == "old"
    build(dist / "llama-2", "mine")  # another name is free
    live_builder.communicate("\n")
    assert live_builder.returncode == 0
    assert bundle_at(dist / "llama") == "new"
    assert names_in(dist) == ["llama", "llama-2"]


def test_the_lock_of_a_killed_builder_is_free(dist: Path, live_builder: subprocess.Popen[str]) -> None:
    theirs = staging_of(live_builder)
    live_builder.kill()
    live_builder.wait()
    assert theirs.exists()
    build(dist / "llama", "mine")
    assert bundle_at(dist / "llama") == "mine"
    assert names_in(dist) == ["llama"]


def test_leftovers_of_every_name_are_removed_and_what_is_being_built_stays(
    dist: Path, live_builder: subprocess.Popen[str]
) -> None:
    theirs = staging_of(live_builder)
    (dist / ".gemma.building-1-0123abcd/gemma").mkdir(parents=True)
    (dist / ".gemma.lock").write_text("1")
    (dist / ".mine.lock").write_text("a user's")
    remove_leftovers(dist)
    assert theirs.exists()
    assert [name for name in names_in(dist) if name != theirs.parent.name] == [".llama.lock", ".mine.lock", "llama"]
    live_builder.communicate("\n")
    assert bundle_at(dist / "llama") == "new"


def test_only_one_of_many_holds_the_lock_while_its_file_comes_and_goes(dist: Path) -> None:
    """Removing the file of a lock is where such locks go wrong: two holders, one on a file without a name."""
    count_up = """
import sys
from pathlib import Path
from coreai_recipes.errors import BundleError, UserError
from coreai_recipes.manifest.staging import _Place
place, counter, done = _Place(Path(sys.argv[1])), Path(sys.argv[2]), 0
while done < 50:
    try:
        with place.locked():
            counter.write_text(str(int(counter.read_text()) + 1))
            done += 1
    except BundleError:
        pass
"""
    dist.mkdir()
    counter = dist / "counter"
    counter.write_text("0")
    command = [sys.executable, "-c", count_up, str(dist / "llama"), str(counter)]
    counters = [subprocess.Popen(command, env=environment()) for _ in range(4)]
    assert [process.wait() for process in counters] == [0, 0, 0, 0]
    assert counter.read_text() == "200"
    assert names_in(dist) == ["counter"]


def test_leftovers_of_a_name_that_begins_alike_are_not_touched(dist: Path) -> None:
    dist.mkdir()
    others = [
        ".llama.building-1-0123abcd.lock",
        ".llama.building-x",
        ".llama-2.building-1-0123abcd",
        "llama.building-1-0123abcd",
    ]
    for name in others:
        (dist / name).mkdir()
    (dist / ".llama.building-1-0123abcd").mkdir()
    (dist / ".llama.building-2-0123abcd" / "llama").mkdir(parents=True)
    (dist / ".llama.building-2-0123abcd" / "llama" / "half").write_text("written")
    build(dist / "llama", "new")
    assert names_in(dist) == sorted([*others, "llama"])
