"""The fragment cache only ever saves time: no fault of its folder reaches a build."""

import errno
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import coreai_recipes
from coreai_recipes.export import cache as cache_module
from coreai_recipes.export.cache import FragmentCache, default_root, fingerprint

PACKAGE_PARENT = str(Path(coreai_recipes.__file__).parents[1])


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "fragments"


def entry(root: Path) -> Path:
    (path,) = root.iterdir()
    return path


def never() -> bytes:
    pytest.fail("made again although it was cached")


# Keeping


def test_what_is_put_is_what_another_process_gets(root: Path) -> None:
    FragmentCache(root).put("key", b"data")
    assert FragmentCache(root).get("key") == b"data"
    assert FragmentCache(root).get("other key") is None


def test_a_fragment_is_made_once(root: Path) -> None:
    assert FragmentCache(root).get_or_make("key", lambda: b"data") == b"data"
    assert FragmentCache(root).get_or_make("key", never) == b"data"


def test_an_empty_fragment_is_a_fragment(root: Path) -> None:
    FragmentCache(root).put("key", b"")
    assert FragmentCache(root).get_or_make("key", never) == b""


def test_any_key_is_a_key(root: Path) -> None:
    cache = FragmentCache(root)
    for key in ("", "../../escape", "a/b", "k" * 1000, "ü\0"):
        cache.put(key, key.encode())
        assert cache.get(key) == key.encode()
    assert len(list(root.iterdir())) == 5


def test_without_a_root_nothing_is_kept() -> None:
    cache = FragmentCache(None)
    cache.put("key", b"data")
    assert cache.get("key") is None
    assert cache.get_or_make("key", lambda: b"made") == b"made"


def test_a_fragment_that_cannot_be_made_is_not_kept(root: Path) -> None:
    def fail() -> bytes:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        FragmentCache(root).get_or_make("key", fail)
    assert FragmentCache(root).get("key") is None


def test_a_fingerprint_tells_where_a_part_ends() -> None:
    assert fingerprint("ab", "c") != fingerprint("a", "bc") != fingerprint("abc") != fingerprint("abc", "")
    assert fingerprint("ab", b"c") == fingerprint(b"ab", "c")
    assert len(fingerprint()) == 64


# Damage


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: b"",
        lambda whole: whole[:10],
        lambda whole: whole[:-1],
        lambda whole: whole + b"x",
        lambda whole: whole[:-1] + b"X",
        lambda whole: b"X" + whole[1:],
        lambda whole: bytes(len(whole)),
    ],
    ids=["empty", "inside the digest", "truncated", "longer", "last byte", "first byte", "zeros"],
)
def test_a_damaged_entry_is_made_again_and_replaced(root: Path, damage: Callable[[bytes], bytes]) -> None:
    FragmentCache(root).put("key", b"data" * 100)
    entry(root).write_bytes(damage(entry(root).read_bytes()))
    assert FragmentCache(root).get_or_make("key", lambda: b"new") == b"new"
    assert FragmentCache(root).get_or_make("key", never) == b"new"


def test_an_entry_under_another_key_is_not_taken(root: Path, tmp_path: Path) -> None:
    FragmentCache(root).put("key", b"data")
    other = tmp_path / "other"
    FragmentCache(other).put("other key", b"other data")
    entry(root).replace(entry(other))
    assert FragmentCache(other).get("other key") is None


def test_a_killed_build_leaves_no_entry(root: Path) -> None:
    code = """
import os, signal, sys
from pathlib import Path
from coreai_recipes.export.cache import FragmentCache
os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
FragmentCache(Path(sys.argv[1])).put("key", b"data")
"""
    environment = {**os.environ, "PYTHONPATH": PACKAGE_PARENT}
    done = subprocess.run([sys.executable, "-c", code, str(root)], env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    assert FragmentCache(root).get("key") is None
    leftover = entry(root)
    FragmentCache(root).put("key", b"data")
    assert leftover.exists()  # it might be a build of this minute
    os.utime(leftover, (0, 0))
    FragmentCache(root).put("key", b"data")
    assert not leftover.exists()
    assert FragmentCache(root).get("key") == b"data"


# Folders that cannot be used


def assert_builds_with_one_warning(cache: FragmentCache, caplog: pytest.LogCaptureFixture, reason: str) -> None:
    with caplog.at_level(logging.WARNING):
        assert cache.get_or_make("key", lambda: b"data") == b"data"
        assert cache.get_or_make("other key", lambda: b"other data") == b"other data"
    (record,) = caplog.records
    assert record.getMessage() == (
        f"the fragment cache {cache.root} cannot be used ({reason}): builds take longer, nothing else"
    )


def test_a_root_below_a_file_never_fails_a_build(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    cache = FragmentCache(tmp_path / "file" / "fragments")
    assert_builds_with_one_warning(cache, caplog, "Not a directory")


def test_a_folder_in_the_place_of_an_entry_never_fails_a_build(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    FragmentCache(root).put("key", b"data")
    place = entry(root)
    place.unlink()
    place.mkdir()
    assert_builds_with_one_warning(FragmentCache(root), caplog, "Is a directory")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_full_or_read_only_folder_never_fails_a_build(
    root: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(cache_module.os, "replace", refuse)
    assert_builds_with_one_warning(FragmentCache(root), caplog, os.strerror(code))
    assert list(root.iterdir()) == []


def test_an_interrupted_write_leaves_nothing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cache_module.os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        FragmentCache(root).put("key", b"data")
    assert list(root.iterdir()) == []


# Several at once


PUT_AND_GET = """
import sys
from pathlib import Path
from coreai_recipes.export.cache import FragmentCache
cache = FragmentCache(Path(sys.argv[1]), max_entries=8)  # so that they prune each other's entries too
mine = sys.argv[2].encode() * 10_000
for turn in range(100):
    data = cache.get_or_make(f"key {turn % 10}", lambda: mine)
    assert len(data) == 10_000 and len(set(data)) == 1, "torn, or of two writers"
    cache.put(f"key {turn % 10}", mine)
assert not cache._has_warned
"""


def test_concurrent_builds_share_a_folder(root: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": PACKAGE_PARENT}
    command = [sys.executable, "-c", PUT_AND_GET, str(root)]
    builds = [subprocess.Popen([*command, writer], env=environment) for writer in "abcd"]
    assert [build.wait() for build in builds] == [0, 0, 0, 0]
    assert all(path.name.endswith(".fragment") for path in root.iterdir())


# Its size


def used(root: Path, keys: str) -> str:
    """The keys that are still there, without counting as a use."""
    names = {path.name for path in root.iterdir()}
    return "".join(key for key in keys if fingerprint(key) + ".fragment" in names)


def put_in_order(cache: FragmentCache, keys: str) -> None:
    assert cache.root is not None
    for age, key in enumerate(reversed(keys)):
        cache.put(key, bytes(100))
        os.utime(cache.root / (fingerprint(key) + ".fragment"), (1000 - age, 1000 - age))


def test_the_entries_used_longest_ago_go_first(root: Path) -> None:
    put_in_order(FragmentCache(root), "abcd")
    FragmentCache(root).get("a")
    FragmentCache(root, max_entries=3).put("e", bytes(100))
    assert used(root, "abcde") == "ade"


def test_the_bytes_are_bounded(root: Path) -> None:
    put_in_order(FragmentCache(root), "abcd")
    FragmentCache(root, max_bytes=400).put("e", bytes(100))  # an entry is 132 bytes
    assert used(root, "abcde") == "cde"


def test_files_of_others_are_left_alone(root: Path) -> None:
    root.mkdir(parents=True)
    names = ["mine.fragment", "notes.txt", "thesis.unfinished"]
    for name in names:
        (root / name).write_text("mine")
        os.utime(root / name, (0, 0))
    FragmentCache(root, max_entries=0).put("key", b"data")
    assert sorted(path.name for path in root.iterdir()) == names


# Where it lies


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RECIPE_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    return tmp_path


@pytest.mark.parametrize(("platform", "folder"), [("linux", ".cache"), ("darwin", "Library/Caches")])
def test_the_default_is_the_users_cache_folder(
    home: Path, monkeypatch: pytest.MonkeyPatch, platform: str, folder: str
) -> None:
    monkeypatch.setattr(cache_module.sys, "platform", platform)
    assert default_root() == home / folder / "coreai-recipes" / "fragments"


def test_the_environment_chooses_another_folder(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module.sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert default_root() == home / ".cache" / "coreai-recipes" / "fragments"
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "xdg"))
    assert default_root() == home / "xdg" / "coreai-recipes" / "fragments"
    monkeypatch.setenv("RECIPE_CACHE", str(home / "mine"))
    assert default_root() == home / "mine" / "fragments"


def test_a_user_without_a_home_has_no_cache(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(cache_module.Path, "home", homeless)
    assert default_root() is None
