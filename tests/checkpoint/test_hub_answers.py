"""What answers in a hub's place, and an index that leads out of its repository."""

import json
from pathlib import Path

import pytest
from hub_server import Hub, Repository, serve_hub

TINY = Path(__file__).parents[1] / "checkpoints/tiny-llama"
BODIES = {
    "page": b"<!DOCTYPE html><html>Log in to the hotel's network</html>",
    "object": b'{"sha": 3}',
    "list": b"[]",
    "null": b"null",
    "nothing": b"",
    "bytes": b"\xff\xfe\x00",
    "outside": b'{"id": "org/outside", "sha": "../../../outside", "siblings": []}',
}
NAMES = {
    "parent": "../../../api/models/org/other.safetensors",
    "root": "/etc/other.safetensors",
    "pickle": "pytorch_model.bin",
    "backslash": "..\\other.safetensors",
}

FOLDERS = ("", "additional_chat_templates/", "additional_chat_templates/x/")


def settings(name: str) -> dict[str, bytes]:
    index = {"weight_map": {"model.norm.weight": name}}
    return {
        "config.json": (TINY / "config.json").read_bytes(),
        "model.safetensors.index.json": json.dumps(index).encode(),
    }


@pytest.fixture(scope="module")
def hub():
    repositories = {f"org/{name}": Repository({}, says=body) for name, body in BODIES.items()}
    repositories |= {f"org/{name}": Repository(settings(file)) for name, file in NAMES.items()}
    page = Repository({"config.json": BODIES["page"], "model.safetensors": BODIES["page"]})
    leading_out = {f"{folder}../../../leads_out{ending}": b"{}" for folder in FOLDERS for ending in (".json", ".jinja")}
    listed = Repository({file.name: file.read_bytes() for file in TINY.iterdir()} | leading_out)
    with serve_hub(repositories | {"org/pages": page, "org/listed": listed}) as serving:
        yield serving


@pytest.mark.parametrize("opener", ["open_checkpoint", "open_headers"])
def test_an_answer_that_is_no_hubs_is_one_sentence(hub: Hub, opener: str, tmp_path: Path) -> None:
    home = tmp_path / "a/b/c/home"
    answers = hub.run(*(f"{opener}('org/{name}')" for name in BODIES), home=home)
    for name, answer in zip(BODIES, answers, strict=True):
        assert answer.startswith(f"refused: hub id org/{name}: {hub.url} did not answer like a hub ("), answer
        assert answer.endswith("): check HF_ENDPOINT, or whether a network's login page is in between")
        assert len(answer.splitlines()) == 1
    assert not list(tmp_path.rglob("outside"))


def test_a_page_in_a_files_place_is_named(hub: Hub, tmp_path: Path) -> None:
    (answer,) = hub.run("open_headers('org/pages')", home=tmp_path)
    assert answer.startswith("refused: checkpoint org/pages@")
    assert ": config.json is not JSON: " in answer


def test_a_file_outside_of_its_repository_is_not_asked_for(hub: Hub, tmp_path: Path) -> None:
    hub.requests.clear()
    answers = hub.run(*(f"open_headers('org/{name}')" for name in NAMES), home=tmp_path)
    for (name, file), answer in zip(NAMES.items(), answers, strict=True):
        why = "which is not a safetensors file" if name == "pickle" else "a path that leaves the folder"
        assert answer.endswith(f": model.safetensors.index.json names {file!r}, {why}")
    assert {name for _, name, _ in hub.requests} == {"config.json", "model.safetensors.index.json"}


def test_a_listing_that_leads_out_of_its_repository_is_not_followed(hub: Hub, tmp_path: Path) -> None:
    hub.requests.clear()
    home = tmp_path / "a/b/c/home"
    (answer,) = hub.run("open_checkpoint('org/listed').source", home=home)
    assert answer.startswith("org/listed@")
    assert not [name for _, name, _ in hub.requests if "leads_out" in name]
    assert not list(tmp_path.rglob("leads_out*"))


def test_a_revision_that_git_cannot_have_is_refused_unasked(hub: Hub, tmp_path: Path) -> None:
    (answer,) = hub.run("open_checkpoint('org/parent@../../x')", home=tmp_path)
    assert answer == "refused: checkpoint org/parent@../../x: ../../x is not a revision"
