"""tokens.json: what transformers' tokenizer of a checkpoint knows beyond its files, and that a bundle reads it."""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizer_folders import CHAT, TEMPLATE, TEXTS, TINY, edit, special_tokens_map, token, written
from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer

from coreai_recipes.errors import BundleError, UserError
from coreai_recipes.tokenizer.bundle_tokenizer import BundleTokenizer
from coreai_recipes.tokenizer.tokens import read_tokens


def class_defaults(folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    edit(folder / "config.json", model_type="gpt2")


def added_tokens_decoder(folder: Path) -> None:
    edit(folder / "tokenizer_config.json", added_tokens_decoder={"512": token("<|im_start|>"), "513": token("<|new|>")})


def added_and_not_special(folder: Path) -> None:
    tokens = {"512": token("<|im_start|>", special=False, lstrip=True, rstrip=True)}
    edit(folder / "tokenizer_config.json", added_tokens_decoder=tokens)


def additional_special_tokens(folder: Path) -> None:
    edit(folder / "tokenizer_config.json", additional_special_tokens=["<|im_start|>", "<|new|>"])


def extra_special_tokens(folder: Path) -> None:
    edit(folder / "tokenizer_config.json", extra_special_tokens={"image_token": "<|new|>"})


def older_added_tokens(folder: Path) -> None:
    edit(folder / "added_tokens.json", **{"<|im_start|>": 512})
    edit(folder / "special_tokens_map.json", additional_special_tokens=["<|im_start|>"])


def special_tokens_are_split(folder: Path) -> None:
    edit(folder / "tokenizer_config.json", split_special_tokens=True)


def class_cuts_otherwise(folder: Path) -> None:
    """transformers' GPT2Tokenizer takes vocabulary and merges, and cuts digits its own way."""
    edit(folder / "tokenizer_config.json", tokenizer_class="GPT2Tokenizer")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    cuts = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    tokenizer.pre_tokenizer, tokenizer.normalizer = pre_tokenizers.Sequence(cuts), normalizers.NFC()
    tokenizer.save(str(folder / "tokenizer.json"))


def prefix_space(folder: Path) -> None:
    edit(folder / "tokenizer_config.json", tokenizer_class="GPT2Tokenizer", add_prefix_space=True)


def class_has_its_own_ends(folder: Path) -> None:
    """Qwen's class normalizes and cuts as Qwen does, whatever tokenizer.json says."""
    edit(folder / "tokenizer_config.json", tokenizer_class="Qwen2Tokenizer", bos_token=None)
    edit(folder / "config.json", model_type="qwen3")


def first_and_last_token(folder: Path) -> None:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A <|endoftext|>", special_tokens=[("<|endoftext|>", 0)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))


def truncates_and_pads(folder: Path) -> None:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=64)
    tokenizer.save(str(folder / "tokenizer.json"))


CHANGES = [
    special_tokens_map,
    class_defaults,
    added_tokens_decoder,
    added_and_not_special,
    additional_special_tokens,
    extra_special_tokens,
    older_added_tokens,
    special_tokens_are_split,
    class_cuts_otherwise,
    prefix_space,
    class_has_its_own_ends,
    first_and_last_token,
    truncates_and_pads,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_bundle_makes_the_tokens_that_transformers_makes_of_the_checkpoint(
    checkpoint: Path, tmp_path: Path, change: Any
) -> None:
    change(checkpoint)
    theirs, ours = AutoTokenizer.from_pretrained(checkpoint), written(checkpoint, tmp_path / "bundle")
    for text in TEXTS:
        assert ours.encode(text) == theirs(text)["input_ids"], text
    for length in range(1, len(CHAT) + 1):
        wanted = theirs.apply_chat_template(CHAT[:length], add_generation_prompt=True, return_dict=False)
        assert ours.encode_chat(CHAT[:length]) == wanted


def test_the_checkpoints_files_are_copied_as_they_are(checkpoint: Path, tmp_path: Path) -> None:
    added_tokens_decoder(checkpoint)
    written(checkpoint, tmp_path / "bundle")
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (tmp_path / "bundle" / name).read_bytes() == (checkpoint / name).read_bytes()


def test_tokens_json_says_what_a_host_needs(checkpoint: Path, tmp_path: Path) -> None:
    added_tokens_decoder(checkpoint)
    written(checkpoint, tmp_path / "bundle")
    found = json.loads((tmp_path / "bundle" / "tokens.json").read_text())
    assert found == {
        "format": 1,
        "special_tokens": {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"},
        "added_tokens": [
            {"id": 0, **token("<|endoftext|>")},
            {"id": 512, **token("<|im_start|>")},
            {"id": 513, **token("<|new|>")},
        ],
        "end_tokens": [{"id": 0, "content": "<|endoftext|>"}],
        "chat_templates": {"default": TEMPLATE},
        "tokenizer": {},
        "split_special_tokens": False,
    }


def test_the_end_token_is_the_tokenizers_where_no_config_names_one(checkpoint: Path, tmp_path: Path) -> None:
    (checkpoint / "generation_config.json").unlink()
    edit(checkpoint / "config.json", eos_token_id=None)
    written(checkpoint, tmp_path / "bundle")
    assert read_tokens(tmp_path / "bundle").end_tokens == {0: "<|endoftext|>"}
    edit(checkpoint / "tokenizer_config.json", eos_token=None)
    written(checkpoint, tmp_path / "without")
    assert read_tokens(tmp_path / "without").end_tokens == {}


@pytest.mark.parametrize("form", ["config", "folder", "folder and default"])
def test_named_templates_are_chosen_by_name_and_none_by_silence(checkpoint: Path, tmp_path: Path, form: str) -> None:
    named = {"rag": "{{ 'rag ' ~ messages[0].content }}", "tool": "tool"}
    if form == "config":
        texts = [{"name": name, "template": text} for name, text in named.items()]
        edit(checkpoint / "tokenizer_config.json", chat_template=texts)
    else:
        (checkpoint / "additional_chat_templates").mkdir()
        for name, text in named.items():
            (checkpoint / "additional_chat_templates" / f"{name}.jinja").write_text(text)
    if form == "folder and default":
        (checkpoint / "chat_template.jinja").write_text("default")
    ours, theirs = written(checkpoint, tmp_path / "bundle"), AutoTokenizer.from_pretrained(checkpoint)
    wanted = theirs.apply_chat_template(CHAT, chat_template="rag", return_dict=False)
    assert ours.encode_chat(CHAT, "rag") == wanted
    if form == "folder and default":
        assert ours.encode_chat(CHAT) == theirs.apply_chat_template(CHAT, return_dict=False)
        return
    with pytest.raises(UserError) as caught:
        ours.encode_chat(CHAT)
    assert caught.value.problems == (
        f"{tmp_path / 'bundle'}: it has several chat templates and no default: "
        "choose one with --template (rag, tool), or use --raw",
    )
    with pytest.raises(UserError, match=r"has no chat template nothing: it has rag, tool$"):
        ours.encode_chat(CHAT, "nothing")


def test_a_bundle_without_tokens_json_still_opens(checkpoint: Path, tmp_path: Path) -> None:
    special_tokens_map(checkpoint)
    before = written(checkpoint, tmp_path / "bundle").encode_chat(CHAT)
    (tmp_path / "bundle" / "tokens.json").unlink()
    assert BundleTokenizer(tmp_path / "bundle").encode_chat(CHAT) == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "tokens.json is not JSON: "),
        ("[]", "tokens.json holds a list, not an object"),
        ("{}", "tokens.json has format None, this version reads format 1"),
        ('{"format": 1, "special_tokens": 3}', "tokens.json: special_tokens, chat_templates, end_tokens, tokenizer, "),
        ("[" * 99999, "tokens.json is not JSON: "),
    ],
)
def test_a_tokens_json_that_is_none_is_a_sentence(checkpoint: Path, tmp_path: Path, content: str, message: str) -> None:
    written(checkpoint, tmp_path / "bundle")
    (tmp_path / "bundle" / "tokens.json").write_text(content)
    with pytest.raises(BundleError) as caught:
        BundleTokenizer(tmp_path / "bundle")
    assert caught.value.problems[0].startswith(f"{tmp_path / 'bundle'}: {message}")


def test_custom_code_is_never_run_and_the_files_still_make_a_bundle(checkpoint: Path, tmp_path: Path) -> None:
    edit(
        checkpoint / "tokenizer_config.json",
        tokenizer_class="OddTokenizer",
        auto_map={"AutoTokenizer": ["odd.OddTokenizer", None]},
    )
    (checkpoint / "odd.py").write_text("raise SystemExit('it ran')")
    (checkpoint / "config.json").write_text((TINY / "config.json").read_text().replace('"llama"', '"odd"'))
    ours = written(checkpoint, tmp_path / "bundle")
    assert ours.encode("Hi") == Tokenizer.from_file(str(TINY / "tokenizer.json")).encode("Hi").ids
    assert read_tokens(tmp_path / "bundle").special_tokens["bos_token"] == "<|endoftext|>"
