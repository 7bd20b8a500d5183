import os
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoint_files import pack, write_folder

from coreai_recipes.checkpoint import open_checkpoint, open_headers
from coreai_recipes.checkpoint.safetensors import SafetensorsCheckpoint
from coreai_recipes.errors import CheckpointError


def refusal(src: str | Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(src)
    with pytest.raises(CheckpointError) as headers:
        open_headers(src)
    assert str(caught.value) == str(headers.value)
    return str(caught.value)


def test_a_folder_or_a_file_is_opened_where_it_is(tmp_path):
    folder = write_folder(tmp_path / "model", pack({}, b""))
    for src in (folder, str(folder), folder / "model.safetensors"):
        assert isinstance(open_checkpoint(src), SafetensorsCheckpoint)
    assert open_checkpoint(folder).source == "model"


def test_a_folder_wins_over_a_hub_id_of_the_same_name(tmp_path, monkeypatch):
    write_folder(tmp_path / "org" / "model", pack({}, b""))
    monkeypatch.chdir(tmp_path)
    assert open_checkpoint("org/model").source == "model"
    assert open_headers("org/model").source == "model"


@pytest.mark.parametrize(
    "src", ["/nowhere/model", "./model", "../org/model", "~/model", "a/b/c", "model", "org/model@a@b"]
)
def test_what_is_neither_a_path_nor_a_hub_id_offers_both_readings(src, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert refusal(src) == f"checkpoint {src}: no such folder or file; a hub id is ORG/NAME or ORG/NAME@REVISION"


def test_a_path_object_is_never_a_hub_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert refusal(Path("org/model")).startswith("checkpoint org/model: no such folder or file")


@pytest.mark.parametrize("src", ["models/model.safetensors", "models/model.gguf", "models/pytorch_model.bin"])
def test_a_file_that_is_not_there_is_not_looked_for_on_the_hub(src, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert refusal(src) == f"checkpoint {src}: no such file"


def test_several_gguf_files_are_not_chosen_from(tmp_path):
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    assert refusal(tmp_path) == f"checkpoint {tmp_path}: holds 2 GGUF files; give one of them"


def test_a_gguf_file_is_opened_as_one(tmp_path):
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    in_folder, given = refusal(tmp_path), refusal(tmp_path / "a.gguf")
    assert in_folder == given
    assert "a.gguf" in given


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("")
    assert (
        refusal(tmp_path / "notes.txt")
        == f"checkpoint {tmp_path}/notes.txt: is neither a .safetensors nor a .gguf file"
    )


def test_importing_the_room_imports_nothing_heavy():
    script = "import sys, coreai_recipes.checkpoint; print(sorted(sys.modules.keys() & set(sys.argv[1:])))"
    heavy = ["torch", "numpy", "yaml", "huggingface_hub", "transformers", "gguf", "pydantic"]
    run = subprocess.run([sys.executable, "-c", script, *heavy], capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"


@pytest.mark.parametrize("suffix", [".safetensors", ".gguf", ""])
def test_a_pipe_is_not_waited_for(tmp_path, suffix):
    pipe = tmp_path / f"model{suffix}"
    os.mkfifo(pipe)
    with pytest.raises(CheckpointError, match=r"model\S*: is neither a folder nor a file$"):
        open_checkpoint(pipe)
