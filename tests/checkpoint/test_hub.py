import json
from pathlib import Path

import pytest
from checkpoint_files import pack, save_model
from hub_server import COMMIT, Hub, Repository, serve_hub

from coreai_recipes.checkpoint.safetensors import SafetensorsCheckpoint

SMALL = {"config.json": b'{"model_type": "llama"}', "tokenizer.json": b"{}"}


TINY = Path(__file__).parent.parent / "checkpoints" / "tiny-llama"


def tokenizer_files() -> dict[str, bytes]:
    """A tokenizer whose templates have names, as some repositories lay them out."""
    found = {name: (TINY / name).read_bytes() for name in ("tokenizer.json", "tokenizer_config.json")}
    named = {f"additional_chat_templates/{name}.jinja": name.encode() for name in ("rag", "tool")}
    return {**found, **named, "add/odd.jinja": b"", "additional_chat_templates/more/odd.jinja": b""}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("hub") / "model"
    save_model(folder, shard="60KB")
    (folder / "tokenizer.json").write_text("{}")
    return folder


@pytest.fixture(scope="module")
def hub(model):
    files = {path.name: path.read_bytes() for path in model.iterdir()}
    extra = {
        "README.md": b"read me",
        "original/params.json": b"{}",
        "consolidated.safetensors": b"",
        "x.bin": b"pickle",
    }
    repositories = {
        "org/model": Repository(files | extra),
        "org/named": Repository(files | tokenizer_files()),
        "org/gated": Repository(files, gated=True),
        "org/pickles": Repository(SMALL | {"pytorch_model.bin": b""}),
        "org/quantized": Repository(SMALL | {"model-Q4_K_M.gguf": b""}),
        "org/empty": Repository(SMALL),
        "org/broken": Repository(files, broken=True),
        "org/misparsed": Repository(SMALL | {"model.safetensors": pack({"a": 3}, b"")}),
    }
    with serve_hub(repositories) as hub:
        yield hub


@pytest.fixture(scope="module")
def online(hub, tmp_path_factory) -> tuple[list[str], Path]:
    """The answers of a hub that is there, in one process, and the cache that it left."""
    home = tmp_path_factory.mktemp("home")
    hub.requests.clear()
    calls = [
        "open_checkpoint('org/model').source",
        "open_checkpoint('org/model@v1').path",
        "sorted(path.name for path in fetch_snapshot('org/model')[0].iterdir())",
        "open_checkpoint('org/gated')",
        "open_checkpoint('org/gated', token='hf_bad')",
        "open_checkpoint('org/gated', token='hf_good').source",
        "open_checkpoint('org/nothing')",
        "open_checkpoint('org/model@nothing')",
        "open_checkpoint('org/pickles')",
        "open_checkpoint('org/quantized')",
        "open_checkpoint('org/empty')",
        "open_checkpoint('org/two--dashes')",
        "open_checkpoint('org/broken')",
    ]
    return hub.run(*calls, home=home), home


def test_a_hub_id_is_downloaded_and_named_with_its_commit(online):
    answers, home = online
    assert answers[0] == f"org/model@{COMMIT}"
    assert Path(answers[1]) == home / "hub" / "models--org--model" / "snapshots" / COMMIT
    ours, theirs = SafetensorsCheckpoint(answers[1]), SafetensorsCheckpoint(answers[1], source=answers[0])
    assert ours.tensors == theirs.tensors
    assert len(ours.tensors) == 29


def test_only_what_a_build_needs_is_downloaded(online, model):
    assert json.loads(online[0][2].replace("'", '"')) == sorted(path.name for path in model.iterdir())


def test_a_gated_model_says_where_to_ask_and_how_to_log_in(online, hub):
    sentence = (
        f"refused: hub id org/gated: is gated: ask for access at {hub.url}/org/gated, "
        "then run `hf auth login` or set HF_TOKEN"
    )
    assert online[0][3] == sentence
    assert online[0][4] == sentence
    assert online[0][5] == f"org/gated@{COMMIT}"


def test_what_is_not_on_the_hub_is_one_sentence(online, hub):
    assert online[0][6] == (
        f"refused: hub id org/nothing: there is no folder of that name here, and {hub.url} has no such model, or it is "
        "private: check the name, or run `hf auth login` or set HF_TOKEN"
    )
    assert online[0][7] == (
        "refused: hub id org/model: has no revision nothing: "
        f"its branches and tags are at {hub.url}/org/model/tree/main"
    )
    assert online[0][11].startswith("refused: hub id org/two--dashes: is not well formed: ")


def test_a_hub_that_fails_is_one_sentence(online, hub):
    assert online[0][12] == (
        f"refused: hub id org/broken: is not in the cache ({online[1]}/hub), and {hub.url} answered 503 Service "
        "Unavailable: run this once online, or give a folder (there is none of that name here)"
    )


def test_other_formats_are_refused_with_the_reason(online):
    assert online[0][8].startswith(
        f"refused: checkpoint org/pickles@{COMMIT}: holds only pickles (pytorch_model.bin), all refused: a pickle runs"
    )
    assert online[0][9] == (
        f"refused: checkpoint org/quantized@{COMMIT}: holds GGUF files and no safetensors; download one "
        "(hf download org/quantized model-Q4_K_M.gguf) and give its path"
    )
    assert online[0][10] == (
        f"refused: checkpoint org/empty@{COMMIT}: holds no weights: neither a .safetensors nor a .gguf file"
    )


def test_offline_the_cache_is_enough_and_what_it_lacks_is_named(online, hub):
    home = online[1]
    cached, revision, absent, unknown, headers = hub.run(
        "open_checkpoint('org/model').source",
        "open_checkpoint('org/model@v1').source",
        "open_checkpoint('org/nothing')",
        "open_checkpoint('org/model@v2')",
        "open_headers('org/model').source",
        home=home,
        HF_HUB_OFFLINE="1",
    )
    assert cached == revision == headers == f"org/model@{COMMIT}"
    cache = f"({home}/hub), and HF_HUB_OFFLINE is set: run this once online, or give a folder"
    assert absent == f"refused: hub id org/nothing: is not in the cache {cache} (there is none of that name here)"
    assert (
        unknown
        == f"refused: hub id org/model: is not in the cache at revision v2 {cache} (there is none of that name here)"
    )


def test_a_hub_that_is_out_of_reach_is_one_sentence(online, hub):
    away = Hub({}, url="http://127.0.0.1:9")
    cached, absent = away.run(
        "open_checkpoint('org/model').source", "open_checkpoint('org/nothing')", home=online[1], HF_HUB_ETAG_TIMEOUT="2"
    )
    assert cached == f"org/model@{COMMIT}"
    assert absent == (
        f"refused: hub id org/nothing: is not in the cache ({online[1]}/hub), and http://127.0.0.1:9 cannot be reached "
        "(ConnectError): run this once online, or give a folder (there is none of that name here)"
    )


def test_a_cache_with_a_part_of_the_model_says_what_is_missing_when_offline(hub, tmp_path):
    (folder,) = hub.run("open_checkpoint('org/model').path", home=tmp_path)
    (Path(folder) / "model-00002-of-00004.safetensors").unlink()
    offline, headers = hub.run(
        "open_checkpoint('org/model')", "open_headers('org/model')", home=tmp_path, HF_HUB_OFFLINE="1"
    )
    assert (
        offline
        == headers
        == (
            "refused: hub id org/model: is cached only in part (model-00002-of-00004.safetensors is missing), "
            "and HF_HUB_OFFLINE is set: run this once online"
        )
    )
    (online,) = hub.run("open_checkpoint('org/model').source", home=tmp_path)
    assert online == f"org/model@{COMMIT}"


def test_headers_are_read_without_downloading_a_weight(hub, model, tmp_path):
    hub.requests.clear()
    tensors, config, blocks, gated, absent, quantized, misparsed = hub.run(
        "sorted((t.name, t.shape, t.dtype, t.file) for t in open_headers('org/model').tensors.values())",
        "open_headers('org/model').config['model_type'], open_headers('org/model').eos_token_ids()",
        "open_headers('org/model').blocks('model.norm.weight')",
        "open_headers('org/gated')",
        "open_headers('org/nothing')",
        "open_headers('org/quantized')",
        "open_headers('org/misparsed')",
        home=tmp_path,
    )
    ours = SafetensorsCheckpoint(model)
    assert tensors == str(sorted((t.name, t.shape, t.dtype, t.file) for t in ours.tensors.values()))
    assert config == f"('llama', {ours.eos_token_ids()})"
    assert blocks == (
        f"refused: checkpoint org/model@{COMMIT}: only its headers were downloaded, its weights were not read"
    )
    assert gated.startswith("refused: hub id org/gated: is gated")
    assert absent.startswith("refused: hub id org/nothing: there is no folder of that name here")
    assert quantized.startswith(f"refused: checkpoint org/quantized@{COMMIT}: holds GGUF files")
    assert misparsed == (
        f"refused: checkpoint org/misparsed@{COMMIT}: model.safetensors: "
        "has a header in which a lacks dtype, shape or data_offsets"
    )
    assert "tokenizer.json" not in {name for _, name, _ in hub.requests}


def test_transformers_tokenizer_is_that_of_the_repository_and_its_named_templates_come_along(hub, tmp_path):
    names, tokenizer, templates = hub.run(
        "sorted(p.relative_to(folder).as_posix() for folder in [fetch_snapshot('org/named')[0]] "
        "for p in folder.rglob('*.jinja'))",
        "open_checkpoint('org/named').load_tokenizer().special_tokens_map",
        "sorted(open_checkpoint('org/named').load_tokenizer().chat_template)",
        home=tmp_path,
    )
    assert names == str(["additional_chat_templates/rag.jinja", "additional_chat_templates/tool.jinja"])
    assert tokenizer == str({"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"})
    assert templates == str(["rag", "tool"])
