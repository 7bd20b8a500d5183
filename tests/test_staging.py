"""A bundle's place holds the old bundle or the new one, whatever happens to the process that writes it."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from sealed_folders import seal

import coreai_recipes
from coreai_recipes.errors import BundleError, UserError
from coreai_recipes.manifest import staging
from coreai_recipes.manifest.staging import check_place, recover, staged_folder

PACKAGE_PARENT = str(Path(coreai_recipes.__file__).parents[1])
TESTS = str(Path(__file__).parent)

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


@pytest.fixture(params=["exchange", "two_renames"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "two_renames":
        refuse_exchange(monkeypatch)
    return str(request.param)


@pytest.fixture
def dist(tmp_path: Path) -> Path:
    return tmp_path / "dist"


# Building


def test_a_first_build_makes_the_folder_and_leaves_nothing_beside_it(dist: Path) -> None:
    build(dist / "deeper" / "llama", "new")
    assert bundle_at(dist / "deeper" / "llama") == "new"
    assert names_in(dist / "deeper") == ["llama"]


@pytest.mark.usefixtures("way")
def test_a_second_build_replaces_the_first(dist: Path) -> None:
    build(dist / "llama", "old")
    build(dist / "llama", "new")
    assert bundle_at(dist / "llama") == "new"
    assert names_in(dist) == ["llama"]


def test_two_renames_are_only_for_a_file_system_without_exchange(dist: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(dist / "llama", "old")
    can_exchange = exchanges(dist)
    renamed: list[Path] = []
    real_rename = os.rename

    def rename(one: Path, other: Path) -> None:
        renamed.append(one)
        real_rename(one, other)

    monkeypatch.setattr(staging.os, "rename", rename)
    build(dist / "llama", "new")
    assert bundle_at(dist / "llama") == "new"
    assert len(renamed) == (0 if can_exchange else 3)


def exchanges(folder: Path) -> bool:
    """Whether the file system under `folder` can exchange two folders."""
    one, other = folder / "one", folder / "other"
    one.mkdir()
    other.mkdir()
    try:
        staging._exchange(one, other)
    except OSError:
        return False
    finally:
        one.rmdir()
        other.rmdir()
    return True


def test_an_empty_folder_may_be_built_into(dist: Path) -> None:
    (dist / "llama").mkdir(parents=True)
    build(dist / "llama", "new")
    assert bundle_at(dist / "llama") == "new"


@pytest.mark.usefixtures("way")
def test_a_link_to_a_bundle_stays_a_link(dist: Path, tmp_path: Path) -> None:
    build(tmp_path / "elsewhere" / "llama", "old")
    dist.mkdir()
    (dist / "latest").symlink_to(tmp_path / "elsewhere" / "llama")
    build(dist / "latest", "new")
    assert (dist / "latest").is_symlink()
    assert bundle_at(tmp_path / "elsewhere" / "llama") == "new"
    assert names_in(dist) == ["latest"]


def test_a_relative_path_is_where_it_was_when_the_build_began(
    dist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dist.mkdir()
    monkeypatch.chdir(dist)
    with staged_folder(Path("llama")) as folder:
        monkeypatch.chdir(tmp_path)
        write_bundle(folder, "new")
    assert bundle_at(dist / "llama") == "new"


def test_every_file_and_folder_is_synced_before_the_exchange(dist: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(dist / "llama", "old")
    events: list[str] = []
    real_sync, real_exchange = staging._sync, staging._exchange

    def sync(path: Path) -> None:
        events.append(path.name if "building" not in path.name else "llama")
        real_sync(path)

    def exchange(one: Path, other: Path) -> None:
        events.append("exchange")
        real_exchange(one, other)

    monkeypatch.setattr(staging, "_sync", sync)
    monkeypatch.setattr(staging, "_exchange", exchange)
    build(dist / "llama", "new")
    before = events[: events.index("exchange")]
    assert sorted(before) == ["dist", "llama", "manifest.json", "model", "recipe.yaml", "weight.bin"]
    assert before.index("weight.bin") < before.index("model") < before.index("llama") < before.index("dist")
    assert events[-1] == "dist"


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


# What is refused


def refused(target: Path) -> str:
    with pytest.raises(BundleError) as told, staged_folder(target):
        pytest.fail("the block must not be entered")
    return str(told.value)


def test_a_folder_that_is_no_bundle_is_not_replaced(dist: Path) -> None:
    (dist / "llama").mkdir(parents=True)
    (dist / "llama" / "thesis.txt").write_text("mine")
    message = refused(dist / "llama")
    assert message == f"{dist / 'llama'} is a folder without manifest.json, not a bundle; choose another --out"
    assert (dist / "llama" / "thesis.txt").read_text() == "mine"
    assert names_in(dist) == ["llama"]


def test_a_file_is_not_replaced(dist: Path) -> None:
    dist.mkdir()
    (dist / "llama").write_text("mine")
    assert refused(dist / "llama") == f"{dist / 'llama'} is a file, not a bundle; choose another --out"
    assert (dist / "llama").read_text() == "mine"


def contents(folder: Path) -> dict[str, bytes | str | None]:
    """Every entry of a folder: a file's bytes, a link's goal, None for a folder."""
    return {
        path.relative_to(folder).as_posix(): (
            os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None
        )
        for path in folder.rglob("*")
    }


def write_git_repository(folder: Path) -> None:
    """A user's project, whose manifest.json is that of a web app."""
    (folder / ".git").mkdir(parents=True)
    (folder / ".git" / "HEAD").write_text("ref: refs/heads/main")
    (folder / "src").mkdir()
    (folder / "src" / "app.js").write_text("mine")
    (folder / "manifest.json").write_text(json.dumps({"name": "my web app", "icons": []}))


def add_notes(folder: Path) -> None:
    (folder / "notes.txt").write_text("mine")


def add_folder(folder: Path) -> None:
    (folder / "model" / "mine").mkdir()


def add_link(folder: Path) -> None:
    (folder / "more").symlink_to(folder.parent)


def replace_by_link(folder: Path) -> None:
    (folder / "recipe.yaml").rename(folder.parent / "mine.yaml")
    (folder / "recipe.yaml").symlink_to(folder.parent / "mine.yaml")


def add_in_device(folder: Path) -> None:
    (folder / "device").mkdir()
    (folder / "device" / "notes.md").write_text("mine")


BUNDLES_WITH_MORE = {
    "notes": (add_notes, "notes.txt"),
    "a folder": (add_folder, "model/mine"),
    "a link": (add_link, "more"),
    "a link in a file's place": (replace_by_link, "recipe.yaml"),
    "notes among device reports": (add_in_device, "device/notes.md"),
}


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("case", BUNDLES_WITH_MORE)
def test_a_bundle_with_a_users_own_things_in_it_is_kept(dist: Path, case: str) -> None:
    add, named = BUNDLES_WITH_MORE[case]
    build(dist / "llama", "old")
    add(dist / "llama")
    before = contents(dist)
    assert refused(dist / "llama") == (
        f"{dist / 'llama'} is kept, because it holds files that no build wrote: {named}; choose another --out"
    )
    assert contents(dist) == before


@pytest.mark.parametrize(
    "manifest",
    [
        "{}",
        "[]",
        "{",
        '{"format": 1}',
        '{"format": 1, "name": "llama", "files": {"src/app.js": {"bytes": 4}, ".git/HEAD": {}}}',
        '{"format": 99, "name": "llama"}',
        '{"name": "my web app", "icons": []}',
    ],
)
def test_a_users_folder_with_a_manifest_of_its_own_is_kept(dist: Path, manifest: str) -> None:
    write_git_repository(dist / "llama")
    (dist / "llama" / "manifest.json").write_text(manifest)
    before = contents(dist)
    message = refused(dist / "llama")
    assert message.startswith(
        f"{dist / 'llama'} is not a bundle that a build wrote, so it is kept (it holds .git, manifest.json, src; its "
    )
    assert message.endswith("; choose another --out")
    assert contents(dist) == before


def test_a_pipe_in_the_place_of_a_manifest_is_not_waited_for(dist: Path) -> None:
    (dist / "llama").mkdir(parents=True)
    os.mkfifo(dist / "llama" / "manifest.json")
    assert "is a pipe, not a file" in refused(dist / "llama")


def test_device_reports_and_the_finders_files_do_not_keep_a_bundle(dist: Path) -> None:
    build(dist / "llama", "old")
    (dist / "llama" / "device").mkdir()
    for name in ("report.json", "device/m4.json", ".DS_Store", "model/.DS_Store"):
        (dist / "llama" / name).write_text("{}")
    build(dist / "llama", "new")
    assert bundle_at(dist / "llama") == "new"


@pytest.mark.usefixtures("way")
def test_notes_that_come_while_a_bundle_is_exchanged_are_kept(dist: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(dist / "llama", "old")
    real = staging._sync_tree
    check = staging._Place.check

    def sync_tree(folder: Path) -> None:
        real(folder)
        # after the last check before the exchange
        monkeypatch.setattr(staging._Place, "check", lambda place: (check(place), add_notes(dist / "llama"))[0])

    monkeypatch.setattr(staging, "_sync_tree", sync_tree)
    with pytest.raises(BundleError, match=r"is kept, because it holds files that no build wrote: notes\.txt"):
        build(dist / "llama", "new")
    assert (dist / "llama" / "notes.txt").read_text() == "mine"
    assert json.loads((dist / "llama" / "manifest.json").read_text())["version"] == "old"
    assert names_in(dist) == ["llama"]


def test_a_users_folder_under_the_name_of_the_previous_bundle_is_never_moved(dist: Path) -> None:
    write_git_repository(dist / ".llama.previous")
    before = contents(dist)
    recover(dist / "llama")
    assert contents(dist) == before
    build(dist / "llama", "old")
    build(dist / "llama", "new")
    assert bundle_at(dist / "llama") == "new"
    assert contents(dist / ".llama.previous") == {
        name.removeprefix(".llama.previous/"): held for name, held in before.items() if "/" in name
    }


def test_without_an_exchange_a_folder_in_the_way_of_the_old_bundle_is_named(
    dist: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_exchange(monkeypatch)
    build(dist / "llama", "old")
    (dist / ".llama.previous").mkdir()
    with pytest.raises(BundleError) as told:
        build(dist / "llama", "new")
    assert str(told.value) == (
        f"{dist / '.llama.previous'} is in the way and was not written by a build; move it, or choose another --out"
    )
    assert bundle_at(dist / "llama") == "old"
    assert names_in(dist) == [".llama.previous", "llama"]


def test_a_users_folder_that_is_called_as_a_leftover_is_kept(dist: Path) -> None:
    write_git_repository(dist / ".llama.building-1-0123abcd")
    (dist / ".llama.building-2-0123abcd").symlink_to(dist / ".llama.building-1-0123abcd")
    before = contents(dist)
    build(dist / "llama", "new")
    shutil.rmtree(dist / "llama")
    assert contents(dist) == before


def test_a_users_file_that_is_called_as_the_lock_is_kept(dist: Path) -> None:
    dist.mkdir()
    (dist / ".llama.lock").write_text("my notes on locks")
    assert refused(dist / "llama") == (
        f"{dist / '.llama.lock'} is in the way and was not written by a build; move it, or choose another --out"
    )
    assert (dist / ".llama.lock").read_text() == "my notes on locks"


@pytest.mark.parametrize("below", ["llama", "llama/model", "llama/deep/er"])
def test_nothing_is_built_inside_a_bundle(dist: Path, below: str) -> None:
    build(dist / "llama", "old")
    target = dist / below / "other"
    assert refused(target) == f"{target} would lie inside the bundle {dist / 'llama'}; choose another --out"
    with pytest.raises(BundleError):
        check_place(target)
    assert bundle_at(dist / "llama") == "old"


def test_temporary_files_of_a_build_lie_beside_it_and_go_with_it(dist: Path) -> None:
    before = tempfile.gettempdir()
    with staged_folder(dist / "llama") as folder:
        write_bundle(folder, "new")
        Path(tempfile.mkdtemp(), "big").write_text("left behind")
        assert Path(tempfile.gettempdir()).parent == folder.parent
    assert tempfile.gettempdir() == before
    assert bundle_at(dist / "llama") == "new"
    assert names_in(dist) == ["llama"]


def test_temporary_files_of_a_killed_build_are_removed_by_the_next(dist: Path) -> None:
    leave = "import tempfile; build(lambda folder: (open(tempfile.mkdtemp() + '/big', 'w').write('left'), die()))"
    done = python(BUILD_IN_A_CHILD, dist / "llama", "new", leave)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert len(names_in(dist)) == 2
    build(dist / "llama", "third")
    assert names_in(dist) == ["llama"]


def test_a_full_folder_for_temporary_files_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(UserError) as told, staging.temporary_folder():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert str(told.value) == (f"{tmp_path}: no space for temporary files; free some, or set TMPDIR to another folder")
    assert names_in(tmp_path) == []


def test_temporary_files_of_a_build_that_fill_the_disk_are_those_of_its_place(dist: Path) -> None:
    with pytest.raises(BundleError) as told, staged_folder(dist / "llama"), staging.temporary_folder():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert str(told.value) == f"{dist / 'llama'}: no space left on the device; free some, or choose another --out"


def test_what_appears_at_the_place_during_the_build_is_not_replaced(dist: Path) -> None:
    def build_while_a_user_writes() -> None:
        with staged_folder(dist / "llama") as folder:
            write_bundle(folder, "new")
            (dist / "llama").mkdir()
            (dist / "llama" / "thesis.txt").write_text("mine")

    with pytest.raises(BundleError, match="not a bundle; choose another --out"):
        build_while_a_user_writes()
    assert names_in(dist / "llama") == ["thesis.txt"]
    assert names_in(dist) == ["llama"]


def test_a_parent_that_is_a_file_is_a_sentence(dist: Path) -> None:
    dist.write_text("mine")
    assert refused(dist / "llama") == f"{dist / 'llama'}: {dist} is not a folder; choose another --out"
    assert dist.read_text() == "mine"


def test_a_name_too_long_is_a_sentence(dist: Path) -> None:
    target = dist / ("a" * 250)
    message = refused(target)
    assert message == f"{target}: the name is too long for this file system; choose a shorter one"


@pytest.fixture
def read_only_dist() -> Iterator[Path]:
    """A folder with a bundle that nobody but root may write to, where every user may go."""
    root = Path(tempfile.mkdtemp())
    root.chmod(0o755)
    build(root / "dist" / "llama", "old")
    (root / "dist").chmod(0o555)
    yield root / "dist"
    (root / "dist").chmod(0o755)
    shutil.rmtree(root)


def test_an_unwritable_folder_is_a_sentence(read_only_dist: Path) -> None:
    target = read_only_dist / "llama"
    as_nobody = "if os.geteuid() == 0: os.seteuid(65534)\nbuild()"  # root may write everywhere
    done = python(BUILD_IN_A_CHILD, target, "new", as_nobody)
    assert done.stderr.splitlines()[-1] == (
        "coreai_recipes.errors.BundleError: "
        f"{target}: {read_only_dist} cannot be written to (permission denied); choose another --out"
    )
    assert bundle_at(target) == "old"
    assert names_in(read_only_dist) == ["llama"]


FILL_THE_DISK = """
def fill(folder):
    before = sorted(os.listdir(target))
    with open(folder / "weight.bin", "wb", buffering=0) as file:
        for _ in range(100):
            if LIMIT and file.tell() >= LIMIT:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            file.write(bytes(1 << 16))
    sys.exit("the disk did not fill up")

old_or_new = "old"
build()
try:
    build(fill)
except staging.BundleError as error:
    print(error)
print(json.loads(Path(target, "manifest.json").read_text())["version"], *sorted(os.listdir(Path(target).parent)))
"""

IN_A_TINY_FILE_SYSTEM = (
    "unshare",
    "--user",
    "--map-root-user",
    "--mount",
    "sh",
    "-c",
    'mount -t tmpfs -o size=256k none "$0" && exec "$@"',
)


def test_a_full_disk_is_a_sentence_and_the_old_bundle_stays(dist: Path) -> None:
    dist.mkdir()
    in_a_tiny_file_system = (*IN_A_TINY_FILE_SYSTEM, str(dist))
    if (
        shutil.which("unshare")
        and subprocess.run([*in_a_tiny_file_system, "true"], capture_output=True).returncode == 0
    ):
        prefix, limit = in_a_tiny_file_system, 0
    else:  # no tiny file system to be had: the same error, raised where a write would
        prefix, limit = (), 1 << 17
    fault = FILL_THE_DISK.replace("LIMIT", str(limit))
    done = python(BUILD_IN_A_CHILD, dist / "llama", "old", fault, prefix=prefix)
    assert done.stdout.splitlines() == [
        f"{dist / 'llama'}: no space left on the device; free some, or choose another --out",
        "old llama",
    ], done.stderr


def test_a_disk_that_turns_out_full_at_fsync_is_a_sentence(dist: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(dist / "llama", "old")

    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(staging, "_sync", full)
    with pytest.raises(BundleError, match="no space left on the device"):
        build(dist / "llama", "new")
    assert bundle_at(dist / "llama") == "old"
    assert names_in(dist) == ["llama"]


def test_an_error_that_is_not_about_the_bundle_passes_unchanged(dist: Path) -> None:
    def read_something_else() -> None:
        with staged_folder(dist / "llama"):
            (dist / "missing-checkpoint").read_bytes()

    with pytest.raises(FileNotFoundError):
        read_something_else()


@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO, errno.EXDEV])
def test_an_exchange_that_fails_for_another_reason_is_a_sentence(
    dist: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    build(dist / "llama", "old")
    refuse_exchange(monkeypatch, code)
    with pytest.raises(BundleError, match="cannot be written to"):
        build(dist / "llama", "new")
    assert bundle_at(dist / "llama") == "old"
    assert names_in(dist) == ["llama"]
