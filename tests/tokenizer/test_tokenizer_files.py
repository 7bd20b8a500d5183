"""Tokenizer files that are refused before anything is converted, and what is made where there is no tokenizer.json."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from tokenizer_folders import TEXTS, TINY, edit, token, written
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer

from coreai_recipes.checkpoint.open import open_checkpoint
from coreai_recipes.checkpoint.safetensors import SafetensorsCheckpoint
from coreai_recipes.errors import CheckpointError, UserError
from coreai_recipes.tokenizer.bundle_tokenizer import BundleTokenizer

ROWS = 520


# --- what is refused before anything is converted --------------------------------------------------------------------

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 17209920\n"


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("tokenizer.json", "{", "tokenizer.json is not a tokenizer: "),
        ("tokenizer.json", "", "tokenizer.json is not a tokenizer: "),
        ("tokenizer.json", "{}", "tokenizer.json is not a tokenizer: "),
        (
            "tokenizer.json",
            "[" * 100_000,
            "tokenizer.json is not a tokenizer: it is nested too deeply: more than 100 levels",
        ),
        ("tokenizer.json", POINTER, "tokenizer.json is a git-lfs pointer, not the file itself: run `git lfs pull` in"),
        ("tokenizer_config.json", POINTER, "tokenizer_config.json is a git-lfs pointer"),
        ("tokenizer_config.json", "[1]", "tokenizer_config.json holds a list, not an object"),
        ("special_tokens_map.json", "{", "special_tokens_map.json is not JSON: "),
        (
            "tokenizer_config.json",
            '{"model_max_length": NaN}',
            "tokenizer_config.json is not JSON: NaN is not a JSON number",
        ),
        ("tokenizer_config.json", '{"chat_template": [{"name": "a", "template": 5}]}', "its chat template is invalid"),
        ("tokenizer_config.json", '{"chat_template": ["a"]}', "its chat template is invalid: "),
        (
            "tokenizer_config.json",
            '{"chat_template": 7}',
            "its chat template is invalid: tokenizer_config.json ",
        ),
        (
            "added_tokens.json",
            '{"<|odd|>": 512}',
            "its tokenizer has the token '<|odd|>' with id 512, but the table has",
        ),
        ("chat_template.jinja", "{% if %}", "its chat template is invalid: line 1: "),
        ("chat_template.jinja", "{{ 1|odd }}", "its chat template is invalid: line 1: No filter named 'odd'."),
        ("additional_chat_templates/rag.jinja", "{{", "its chat template rag is invalid: line 1: "),
    ],
)
def test_files_that_are_no_tokenizer_are_refused(checkpoint: Path, name: str, content: str, problem: str) -> None:
    (checkpoint / name).parent.mkdir(exist_ok=True)
    (checkpoint / name).write_text(content)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(checkpoint).check_tokenizer(512)
    assert caught.value.problems[0].startswith(f"checkpoint {checkpoint}: {problem}")
    assert len(caught.value.problems) == 1


def test_everything_that_is_wrong_is_said_at_once(checkpoint: Path) -> None:
    (checkpoint / "tokenizer.json").write_text("{")
    (checkpoint / "special_tokens_map.json").write_text("{")
    (checkpoint / "chat_template.jinja").write_text("{{")
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(checkpoint).check_tokenizer(512)
    assert len(caught.value.problems) == 3


def test_fewer_tokens_than_rows_are_normal_and_an_id_beyond_them_is_not(checkpoint: Path) -> None:
    open_checkpoint(checkpoint).check_tokenizer(9999)
    open_checkpoint(checkpoint).check_tokenizer(512)
    with pytest.raises(CheckpointError, match=r"with id 511 and 1 more, but the table has 510 rows: use the"):
        open_checkpoint(checkpoint).check_tokenizer(510)


def test_an_images_placeholder_may_lie_beyond_the_rows(checkpoint: Path) -> None:
    """Gemma 3's text models have it there: no text model reads it."""
    edit(checkpoint / "tokenizer_config.json", added_tokens_decoder={"512": token("<image>")}, image_token="<image>")
    open_checkpoint(checkpoint).check_tokenizer(512)


# --- where there is no tokenizer.json --------------------------------------------------------------------------------


def slow(folder: Path, **files: bytes) -> SafetensorsCheckpoint:
    (folder / "tokenizer.json").unlink()
    for name, content in files.items():
        (folder / name.replace("_", ".")).write_bytes(content)
    return SafetensorsCheckpoint(folder)


def test_the_tokenizer_json_that_transformers_makes_is_written(checkpoint: Path, tmp_path: Path) -> None:
    model = json.loads((TINY / "tokenizer.json").read_text())["model"]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    edit(checkpoint / "tokenizer_config.json", tokenizer_class="GPT2Tokenizer")
    found = slow(
        checkpoint,
        vocab_json=json.dumps(model["vocab"]).encode(),
        merges_txt="\n".join(["#version: 0.2", *merges]).encode(),
    )
    found.check_tokenizer(ROWS)
    (tmp_path / "bundle").mkdir()
    found.write_tokenizer(tmp_path / "bundle")
    ours, theirs = BundleTokenizer(tmp_path / "bundle"), AutoTokenizer.from_pretrained(checkpoint)
    for text in TEXTS:
        assert ours.encode(text) == theirs(text)["input_ids"]


def test_of_a_sentencepiece_file_alone_a_tokenizer_json_is_made(checkpoint: Path, tmp_path: Path) -> None:
    """As LLaMA and Mistral were released: the ids are transformers', and those of sentencepiece itself."""
    import sentencepiece

    (tmp_path / "text.txt").write_text((Path(__file__).read_text() + " " + " ".join(TEXTS)) * 2, encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text.txt"),
        model_prefix=str(tmp_path / "m"),
        model_type="bpe",
        vocab_size=500,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    named = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    edit(checkpoint / "tokenizer_config.json", backend=None, add_bos_token=True, **named)
    found = slow(checkpoint, tokenizer_model=(tmp_path / "m.model").read_bytes())
    found.check_tokenizer(ROWS)
    (tmp_path / "bundle").mkdir()
    found.write_tokenizer(tmp_path / "bundle")
    ours, theirs = BundleTokenizer(tmp_path / "bundle"), AutoTokenizer.from_pretrained(checkpoint)
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "m.model"))
    for text in TEXTS:
        assert ours.encode(text) == theirs(text)["input_ids"], text
    assert ours.encode("Hello there, caf\u00e9 \u4f60") == [1, *pieces.encode("Hello there, caf\u00e9 \u4f60")]


def test_of_a_list_of_words_alone_a_tokenizer_json_is_made(checkpoint: Path, tmp_path: Path) -> None:
    """As Chinese GPT-2 models were released; such a folder used to have no tokenizer at all."""
    named = {"tokenizer_class": "BertTokenizer", "bos_token": None, "eos_token": None}
    edit(checkpoint / "tokenizer_config.json", backend=None, **named)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz", "##e", "the", "a\u2028b"]
    found = slow(checkpoint, vocab_txt="\n".join([*words, ""]).encode())
    found.check_tokenizer(len(words))
    (tmp_path / "bundle").mkdir()
    found.write_tokenizer(tmp_path / "bundle")
    ours, theirs = BundleTokenizer(tmp_path / "bundle"), AutoTokenizer.from_pretrained(checkpoint)
    for text in TEXTS:
        assert ours.encode(text) == theirs(text)["input_ids"], text


PIECES = b"".join(b"\n\x09\n\x02p%d\x15\x00\x00\x00\x00" % index for index in range(9)) + b"\x12\x00"


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("vocab_json", b"[1, 2", "vocab.json is not JSON: "),
        ("vocab_json", b'["a", "b"]', "vocab.json holds a list, not an object"),
        ("vocab_json", b'{"a": "b"}', "vocab.json holds more than ids: it is not a vocabulary"),
        ("vocab_json", b'{"a": 0, "b": 8}', "its tokenizer has the token 'b' with id 8, but the table has 8 rows: "),
        ("vocab_txt", b"a\n" * 8 + b"b\n", "its tokenizer has the token 'b' with id 8, but the table has 8 rows: "),
        ("tokenizer_model", b"", "tokenizer.model is neither sentencepiece's nor tiktoken's, or it was truncated"),
        ("tokenizer_model", b"hello", "tokenizer.model is neither sentencepiece's nor tiktoken's"),
        ("tokenizer_model", PIECES[:-3], "tokenizer.model is neither sentencepiece's nor tiktoken's"),
        ("tokenizer_model", PIECES, "its tokenizer has the token 'p8' with id 8, but the table has 8 rows: "),
        ("tokenizer_model", b"IQ== 0\nIg== 8\n", "its tokenizer has the token 'Ig==' with id 8, but the table has"),
        ("tokenizer_model", b"IQ== 0\nIg== x\n", "tokenizer.model is neither sentencepiece's nor tiktoken's"),
    ],
)
def test_an_older_vocabulary_is_looked_at_before_anything_is_converted(
    checkpoint: Path, name: str, content: bytes, problem: str
) -> None:
    with pytest.raises(CheckpointError) as caught:
        slow(checkpoint, **{name: content}).check_tokenizer(8)
    assert [each for each in caught.value.problems if each.startswith(f"checkpoint {checkpoint}: {problem}")]


@pytest.mark.parametrize(
    ("settings", "files", "why"),
    [
        ({}, {"vocab_json": b'{"a": 0}', "merges_txt": b""}, "the type of vocab.json is unknown: name its "),
        ({"tokenizer_class": "GPT2Tokenizer"}, {"vocab_json": b'{"a": 0}'}, "vocab.json is here and merges.txt, which"),
        (
            {"tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": ["mine.Mine", None]}},
            {"tokenizer_model": b"IQ== 0\n"},
            "it needs the checkpoint's own code, which is never run",
        ),
    ],
    ids=["no class", "no merges", "own code"],
)
def test_why_no_tokenizer_is_made_is_said_of_the_files_that_are_there(
    checkpoint: Path, tmp_path: Path, settings: dict[str, Any], files: dict[str, bytes], why: str
) -> None:
    """transformers asks for sentencepiece or tiktoken, whatever is wrong."""
    edit(checkpoint / "tokenizer_config.json", tokenizer_class=None, backend=None)
    edit(checkpoint / "tokenizer_config.json", **settings)
    with pytest.raises(CheckpointError) as caught:
        slow(checkpoint, **files).write_tokenizer(tmp_path)
    begins = f"checkpoint {checkpoint}: has no tokenizer.json, and transformers cannot convert it: {why}"
    assert str(caught.value).startswith(begins)


@pytest.mark.parametrize(
    ("name", "content", "package"),
    [
        ("tokenizer_model", b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02", "sentencepiece"),
        ("tokenizer_model", b"IQ== 0\nIg== 1\n", "tiktoken"),
        ("tiktoken_model", b"IQ== 0\nIg== 1\n", "tiktoken"),
        ("tekken_json", b"{}", "mistral-common"),
    ],
)
def test_a_package_that_is_missing_is_named(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: bytes, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package.replace("-", "_"), None)  # as where it is not installed
    found = slow(checkpoint, **{name: content})
    found.check_tokenizer(ROWS)
    with pytest.raises(CheckpointError) as caught:
        found.write_tokenizer(tmp_path)
    file = name.replace("_", ".")
    assert caught.value.problems == (
        f"checkpoint {checkpoint}: has no tokenizer.json, and transformers cannot convert it: "
        f"{file} needs the package {package}: pip install {package}",
    )


def test_a_folder_without_any_tokenizer_is_refused_before_anything_is_converted(checkpoint: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no tokenizer: neither tokenizer.json nor tokenizer.model nor"):
        slow(checkpoint).check_tokenizer(ROWS)


def test_a_vocabulary_of_words_alone_needs_no_package(checkpoint: Path) -> None:
    tokenizer = Tokenizer(models.WordLevel({"<|endoftext|>": 0, "a": 1}, unk_token="<|endoftext|>"))
    tokenizer.save(str(checkpoint / "tokenizer.json"))
    SafetensorsCheckpoint(checkpoint).check_tokenizer(2)


# --- size ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "limit"), [("tokenizer.json", 48), ("tokenizer_config.json", 48), ("chat_template.jinja", 1)]
)
def test_a_file_of_a_hundred_megabytes_is_refused_unread(checkpoint: Path, name: str, limit: int) -> None:
    with (checkpoint / name).open("wb") as file:
        file.truncate(100 << 20)
    with pytest.raises(CheckpointError, match=f"{name} is larger than {limit} MiB$"):
        SafetensorsCheckpoint(checkpoint).check_tokenizer(ROWS)


def test_a_prompt_of_a_hundred_megabytes_is_refused_unread(checkpoint: Path, tmp_path: Path) -> None:
    ours = written(checkpoint, tmp_path / "bundle")
    text = "x" * 100_000_000
    message = r"^the prompt has 100,000,\d\d\d bytes; at most 2,097,152 are accepted: shorten it$"
    for ask in (lambda: ours.encode(text), lambda: ours.encode_chat([{"role": "user", "content": text}])):
        with pytest.raises(UserError, match=message):
            ask()
    with pytest.raises(UserError, match=message):
        ours.encode_chat([{"role": "user", "content": "x" * 1_000_000}] * 100)
