"""A bundle is proven against the checkpoint that it was built from, and against no other."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from coreai_recipes.bundle import Bundle, build, verify
from coreai_recipes.checkpoint.open import open_checkpoint
from coreai_recipes.errors import BundleError, CheckpointError

CHECKPOINT = Path(__file__).parents[1] / "checkpoints/tiny-llama"
NAME = "tiny-llama"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return build(NAME, CHECKPOINT, tmp_path_factory.mktemp("dist"), verified=False)


@pytest.fixture
def other(tmp_path: Path) -> Path:
    shutil.copytree(CHECKPOINT, tmp_path / "other")
    return tmp_path / "other"


def change_a_number(folder: Path) -> str:
    """The same names, shapes and sizes, as a finetune of the same model has them."""
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-3] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    return "model.safetensors"


def widen(folder: Path) -> str:
    tensors = {name: tensor.float() for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return "model.safetensors"


def change_the_config(folder: Path) -> str:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-3}))
    return "config.json"


def split(folder: Path) -> str:
    """The same weights in other files are another checkpoint: what was sealed are digests of files."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    files = {name: f"model-0000{1 + (i > 3)}-of-00002.safetensors" for i, name in enumerate(names)}
    for file in set(files.values()):
        save_file({name: tensors[name] for name in names if files[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    return "model-00001-of-00002.safetensors"


def assert_refused(bundle: Bundle, other: Path, file: str, stage: str) -> None:
    """`verify` refuses the checkpoint `other` by the first file that differs."""
    with pytest.raises(CheckpointError) as told:
        verify(bundle, other, stages=[stage])
    assert told.value.problems == (
        f"checkpoint {other}: this is not the checkpoint that tiny-llama was built from: {file}",
    )


OTHERS = [change_a_number, widen, change_the_config, split]


@pytest.mark.parametrize("change", OTHERS)
def test_another_checkpoint_is_refused_by_the_first_file_that_differs(
    bundle: Bundle, other: Path, change: Callable[[Path], str]
) -> None:
    assert_refused(bundle, other, change(other), "torch")


def test_the_command_line_refuses_another_checkpoint(
    bundle: Bundle, other: Path, run: Callable[..., tuple[int, str, str]]
) -> None:
    change_a_number(other)
    status, out, err = run("verify", bundle.path, "--checkpoint", other, "--stage", "package")
    assert (status, out) == (2, "")
    assert err == (
        f"checkpoint {other}: this is not the checkpoint that tiny-llama was built from: model.safetensors\n"
    )


def test_the_same_weights_are_known_again_under_another_name(bundle: Bundle, other: Path) -> None:
    (other / "model.safetensors").rename(other / "weights.safetensors")
    assert verify(bundle, other / "weights.safetensors", stages=["rotary"]).passed


def test_what_was_sealed_before_sizes_were_is_compared_by_digest(bundle: Bundle, other: Path, tmp_path: Path) -> None:
    shutil.copytree(bundle.path, tmp_path / NAME)
    manifest = json.loads((bundle.path / "manifest.json").read_text())
    del manifest["checkpoint"]["bytes"], manifest["checkpoint"]["config_sha256"]
    (tmp_path / NAME / "manifest.json").write_text(json.dumps(manifest))
    assert verify(tmp_path / NAME, CHECKPOINT, stages=["rotary"]).passed
    change_a_number(other)
    with pytest.raises(CheckpointError, match=r"this is not the checkpoint that tiny-llama was built from: model\."):
        verify(tmp_path / NAME, other, stages=["torch"])


def test_without_a_checkpoint_a_local_one_is_asked_for_and_no_hub_is_opened(
    tmp_path: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, run: Callable[..., tuple[int, str, str]]
) -> None:
    """The recipe names a hub id; the bundle came from a folder, and the hub's weights may be others."""
    built = build(NAME, CHECKPOINT, tmp_path, overrides=["reference.checkpoint=org/tiny-llama"], verified=False)
    monkeypatch.setattr("coreai_recipes.checkpoint.hub.fetch_snapshot", None)
    status, out, _ = run("verify", built.path, "--json")
    found = json.loads(out)
    assert (status, found["passed"]) == (1, False)
    reason = "tiny-llama was built from tiny-llama, which is not on the hub: pass it with --checkpoint SRC"
    assert {stage["detail"]["skipped"] for stage in found["stages"] if stage["name"] in ("torch", "package")} == {
        reason
    }
    assert all(stage["passed"] is None for stage in found["stages"])


def test_without_a_checkpoint_the_very_commit_of_the_hub_is_opened(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(bundle.path, tmp_path / NAME)
    manifest = json.loads((bundle.path / "manifest.json").read_text())
    manifest["checkpoint"]["source"] = "org/tiny@0123abc"
    (tmp_path / NAME / "manifest.json").write_text(json.dumps(manifest))
    asked: list[str] = []

    def open_instead(source: str) -> object:
        asked.append(source)
        return open_checkpoint(CHECKPOINT)

    monkeypatch.setattr("coreai_recipes.checkpoint.open.open_checkpoint", open_instead)
    assert verify(tmp_path / NAME, stages=["rotary"]).passed
    assert asked == ["org/tiny@0123abc"]


@pytest.mark.parametrize("named", ["embedded:gemma4-tiny", "embedded:gemma4-tiny/draft"])
def test_without_a_checkpoint_one_that_ships_with_the_package_is_opened(named: str) -> None:
    from coreai_recipes.bundle.origin import hold_origin
    from coreai_recipes.manifest.schema import Origin

    source = open_checkpoint(named)
    origin = Origin.model_validate({"source": source.source, "sha256": source.digests()})
    held = hold_origin(origin, "gemma4-tiny", None, named, "--checkpoint SRC")
    held.finish()
    assert held.source is not None
    assert held.source.path == source.path


def test_a_manifest_says_what_a_checkpoint_is_known_by(bundle: Bundle) -> None:
    from hashlib import sha256

    weights, config = (CHECKPOINT / name for name in ("model.safetensors", "config.json"))
    assert bundle.manifest["checkpoint"] == {
        "source": "tiny-llama",
        "sha256": {"model.safetensors": sha256(weights.read_bytes()).hexdigest()},
        "bytes": {"model.safetensors": weights.stat().st_size},
        "config_sha256": sha256(config.read_bytes()).hexdigest(),
    }


def test_a_draft_for_a_bundle_without_one_is_refused(bundle: Bundle) -> None:
    with pytest.raises(BundleError, match="was built without a draft"):
        verify(bundle, CHECKPOINT, draft=CHECKPOINT)


def test_a_drafts_checkpoint_is_held_against_its_own_digests(other: Path) -> None:
    from coreai_recipes.bundle.origin import hold_origin
    from coreai_recipes.checkpoint.identity import config_digest, sizes_of
    from coreai_recipes.manifest.schema import Origin

    source = open_checkpoint(CHECKPOINT)
    origin = Origin(
        source="draft", sha256=source.digests(), bytes=sizes_of(source), config_sha256=config_digest(source)
    )
    hold_origin(origin, "the draft of llama", source, None, "--draft SRC").finish()
    change_a_number(other)
    with pytest.raises(CheckpointError) as told:
        hold_origin(origin, "the draft of llama", other, None, "--draft SRC").finish()
    assert told.value.problems == (
        f"checkpoint {other}: this is not the checkpoint that the draft of llama was built from: model.safetensors",
    )
    asked = hold_origin(origin, "the draft of llama", None, "org/draft", "--draft SRC")
    assert asked.source is None
    assert asked.reason == (
        "the draft of llama was built from draft, which is not on the hub: pass it with --draft SRC"
    )


def edit(path: Path, **changes: object) -> str:
    document = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**document, **changes}))
    return path.name


def add_a_template(folder: Path) -> str:
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    return "chat_template.jinja"


def add_a_named_template(folder: Path) -> str:
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates/tool.jinja").write_text("{{ messages }}")
    return "additional_chat_templates/tool.jinja"


def change_a_merge(folder: Path) -> str:
    document = json.loads((folder / "tokenizer.json").read_text())
    document["model"]["merges"][-2:] = document["model"]["merges"][:-3:-1]
    return edit(folder / "tokenizer.json", **document)


OTHER_TOKENIZERS: list[Callable[[Path], str]] = [
    lambda folder: edit(folder / "generation_config.json", eos_token_id=[0, 7]),
    lambda folder: edit(folder / "tokenizer_config.json", eos_token="!"),
    lambda folder: edit(folder / "tokenizer_config.json", chat_template="{{ messages }}"),
    lambda folder: edit(folder / "special_tokens_map.json", bos_token="!"),
    lambda folder: edit(folder / "added_tokens.json", **{"<new>": 512}),
    lambda folder: edit(folder / "chat_template.json", chat_template="{{ messages }}"),
    change_a_merge,
    add_a_template,
    add_a_named_template,
]


@pytest.mark.parametrize("change", OTHER_TOKENIZERS)
def test_the_same_weights_beside_another_tokenizer_are_another_checkpoint(
    bundle: Bundle, other: Path, change: Callable[[Path], str]
) -> None:
    """All of these used to pass: other end tokens, another template, other ids."""
    assert_refused(bundle, other, change(other), "rotary")


def rewrite_with_other_line_ends(folder: Path) -> None:
    """As git does on some systems."""
    for name in ("tokenizer_config.json", "generation_config.json", "tokenizer.json"):
        content = json.dumps(json.loads((folder / name).read_text()), indent=3, sort_keys=True)
        (folder / name).write_bytes(content.replace("\n", "\r\n").encode())


def say_how_to_sample(folder: Path) -> None:
    edit(folder / "generation_config.json", temperature=0.5, transformers_version="5.0.0")


def leave_the_end_tokens_to_the_config(folder: Path) -> None:
    (folder / "generation_config.json").unlink()


def add_files_that_say_nothing(folder: Path) -> None:
    """What one way of downloading takes along and another leaves out."""
    (folder / "special_tokens_map.json").write_text("{}")
    (folder / "vocab.json").write_text("{}")
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer.model").write_bytes(b"\n")
    (folder / "README.md").write_text("# A model")


@pytest.mark.parametrize(
    "change",
    [
        rewrite_with_other_line_ends,
        say_how_to_sample,
        leave_the_end_tokens_to_the_config,
        add_files_that_say_nothing,
    ],
)
def test_the_same_tokenizer_is_known_again_however_it_was_fetched(
    bundle: Bundle, other: Path, change: Callable[[Path], None]
) -> None:
    change(other)
    assert verify(bundle, other, stages=["rotary"]).passed


def test_a_pointer_in_a_tokenizers_place_is_named_as_one(bundle: Bundle, other: Path) -> None:
    (other / "tokenizer.json").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is a git-lfs pointer"):
        verify(bundle, other, stages=["rotary"])


def test_a_manifest_that_ends_answers_elsewhere_than_its_tokens_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    shutil.copytree(bundle.path, tmp_path / NAME)
    edit(tmp_path / NAME / "manifest.json", eos_token_ids=[0, 7])
    with pytest.raises(BundleError) as told:
        verify(tmp_path / NAME, CHECKPOINT, stages=["rotary"])
    assert told.value.problems == (
        f"{tmp_path / NAME}: manifest.json: eos_token_ids are not the end tokens of tokens.json",
    )


def test_a_bundle_from_before_tokens_json_is_compared_by_the_files_that_it_has(
    bundle: Bundle, other: Path, tmp_path: Path
) -> None:
    """It took no templates of a folder's."""
    shutil.copytree(bundle.path, tmp_path / NAME)
    (tmp_path / NAME / "tokens.json").unlink()
    manifest = json.loads((bundle.path / "manifest.json").read_text())
    del manifest["tokens"], manifest["files"]["tokens.json"]
    (tmp_path / NAME / "manifest.json").write_text(json.dumps(manifest))
    add_a_named_template(other)
    assert verify(tmp_path / NAME, other, stages=["rotary"]).passed
    edit(other / "tokenizer_config.json", eos_token="!")
    with pytest.raises(CheckpointError, match=r"built from: tokenizer_config\.json"):
        verify(tmp_path / NAME, other, stages=["rotary"])
