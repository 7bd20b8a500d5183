"""The tokenizer of a bundle is asked of transformers once for the same files."""

import json
import sys
from pathlib import Path

import pytest
from fake_bundle import byte_level_tokenizer

from coreai_recipes.checkpoint import kept_tokenizer
from coreai_recipes.checkpoint.asking_tokenizer import command_for
from coreai_recipes.checkpoint.kept_tokenizer import KeptTokenizer
from coreai_recipes.checkpoint.safetensors import SafetensorsCheckpoint
from coreai_recipes.errors import CheckpointError


class Kept(dict[str, bytes]):
    def put(self, key: str, data: bytes) -> None:
        self[key] = data


class Counting(SafetensorsCheckpoint):
    asked = 0

    def write_tokenizer(self, folder: Path) -> None:
        Counting.asked += 1
        super().write_tokenizer(folder)


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    from safetensors.numpy import save_file

    monkeypatch.setattr(Counting, "asked", 0)
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    byte_level_tokenizer().save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": "{{ messages[0].content }}"})
    )
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates/tool.jinja").write_text("{{ messages }}")
    (folder / "config.json").write_text('{"model_type": "llama", "eos_token_id": 1}')
    save_file({}, folder / "model.safetensors")
    return folder


def written(checkpoint: Path, target: Path, cache: Kept) -> dict[str, bytes]:
    target.mkdir()
    KeptTokenizer(Counting(checkpoint), cache).write(target)
    return files(target)


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_second_build_has_the_same_files_and_asks_nobody(checkpoint: Path, tmp_path: Path) -> None:
    cache = Kept()
    first = written(checkpoint, tmp_path / "first", cache)
    assert {"tokenizer.json", "tokens.json", "additional_chat_templates/tool.jinja"} <= first.keys()
    assert written(checkpoint, tmp_path / "second", cache) == first
    assert Counting.asked == 1
    assert len(b"".join(cache.values())) < len(first["tokenizer.json"])  # what is the checkpoint's is not kept twice


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "config.json", "added_tokens.json"])
def test_any_other_file_beside_the_weights_is_asked_about_anew(checkpoint: Path, tmp_path: Path, name: str) -> None:
    cache = Kept()
    written(checkpoint, tmp_path / "first", cache)
    file = checkpoint / name
    file.write_text(f"{file.read_text()} " if file.exists() else "{}")
    written(checkpoint, tmp_path / "second", cache)
    assert Counting.asked == 2


def test_another_version_of_transformers_is_asked_anew(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = Kept()
    written(checkpoint, tmp_path / "first", cache)
    monkeypatch.setattr(kept_tokenizer, "version", lambda package: "0")
    written(checkpoint, tmp_path / "second", cache)
    assert Counting.asked == 2


def test_a_failure_is_not_kept(checkpoint: Path, tmp_path: Path) -> None:
    cache = Kept()
    (checkpoint / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match="has no tokenizer"):
        written(checkpoint, tmp_path / "first", cache)
    assert cache == {}


def test_too_many_bytes_beside_the_weights_are_not_hashed(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = Kept()
    monkeypatch.setattr(kept_tokenizer, "MOST_BYTES", 100)
    written(checkpoint, tmp_path / "first", cache)
    assert cache == {}


class Elsewhere(Counting):
    """Asks `command` as if nothing had been imported yet."""

    command: list[str]

    def asking_tokenizer(self) -> list[str]:
        return self.command


def test_a_process_of_its_own_without_torch_gives_the_same_files(checkpoint: Path, tmp_path: Path) -> None:
    here = written(checkpoint, tmp_path / "here", Kept())
    source, cache = Elsewhere(checkpoint), Kept()
    source.command = command_for(checkpoint, None)
    tokenizer = KeptTokenizer(source, cache)
    tokenizer.ask_ahead()
    (tmp_path / "there").mkdir()
    tokenizer.write(tmp_path / "there")
    assert Counting.asked == 1
    assert files(tmp_path / "there") == here
    assert written(checkpoint, tmp_path / "later", cache) == here
    assert Counting.asked == 1


@pytest.mark.parametrize("command", [["no-such-program"], [sys.executable, "-c", "raise SystemExit(3)"]])
def test_a_process_that_fails_has_no_say(checkpoint: Path, tmp_path: Path, command: list[str]) -> None:
    source = Elsewhere(checkpoint)
    source.command = command
    tokenizer = KeptTokenizer(source, Kept())
    tokenizer.ask_ahead()
    (tmp_path / "bundle").mkdir()
    tokenizer.write(tmp_path / "bundle")
    assert Counting.asked == 1


def test_where_torch_is_imported_no_process_is_started(checkpoint: Path) -> None:
    import torch  # noqa: F401

    assert SafetensorsCheckpoint(checkpoint).asking_tokenizer() is None
