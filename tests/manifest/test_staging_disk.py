"""Temporary files, folders that cannot be written to and disks that are full."""

import errno
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from staged_places import BUILD_IN_A_CHILD, build, bundle_at, names_in, python, refuse_exchange, refused, write_bundle

from coreai_recipes.errors import BundleError, UserError
from coreai_recipes.manifest import staging
from coreai_recipes.manifest.staging import staged_folder


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
