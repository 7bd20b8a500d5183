"""A bundle's place holds the old bundle or the new one, whatever happens to the process that writes it."""

import os
from pathlib import Path

import pytest
from staged_places import build, bundle_at, names_in, write_bundle

from coreai_recipes.manifest import staging
from coreai_recipes.manifest.staging import staged_folder

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
