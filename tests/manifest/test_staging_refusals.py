"""What is a user's own is never replaced, moved or removed by a build."""

import json
import os
import shutil
from pathlib import Path

import pytest
from staged_places import build, bundle_at, names_in, refuse_exchange, refused

from coreai_recipes.errors import BundleError
from coreai_recipes.manifest import staging
from coreai_recipes.manifest.staging import check_place, recover


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
