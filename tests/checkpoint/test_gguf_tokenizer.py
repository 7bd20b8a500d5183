"""The tokenizer that a GGUF file gives cuts text as the model's own does."""

import json
from pathlib import Path
from typing import Any

import pytest
from gguf_files import TINY_TOKENIZER
from gguf_tokenizers import SAMPLES, TEXT, tiny
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from coreai_recipes.checkpoint.gguf.architecture import load_table
from coreai_recipes.checkpoint.gguf.metadata import Metadata
from coreai_recipes.checkpoint.gguf.special_tokens import end_token_ids
from coreai_recipes.checkpoint.gguf.tokenizer import build_tokenizer, check_tokenizer, write_tokenizer
from coreai_recipes.errors import CheckpointError


def byte_level(normalizer: Any, cuts: list[Any], ignore_merges: bool = False) -> Tokenizer:
    """A byte-level tokenizer with merges learned from TEXT, as a model's own tokenizer.json describes one."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(cuts)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["<pad>", "<s>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT] * 3, trainer)
    return tokenizer


def metadata_of(tokenizer: Tokenizer, pre: str, **extra: Any) -> Metadata:
    """The pairs that llama.cpp's converter writes for a byte-level tokenizer."""
    model = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    special = {"<pad>", "<s>", "<|im_end|>"}
    pairs = {
        **TINY_TOKENIZER,
        "general.architecture": "llama",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if token in special else 1 for token in tokens],
        "tokenizer.ggml.merges": [" ".join(merge) for merge in model["merges"]],
        **{f"tokenizer.ggml.{key}": value for key, value in extra.items()},
    }
    return Metadata(Path("model.gguf"), pairs)


def transformers_split(module: str, constant: str) -> str:
    from importlib import import_module

    return str(getattr(import_module(f"transformers.{module}"), constant))


def cut_by(regex: str) -> list[Any]:
    return [
        pre_tokenizers.Split(Regex(regex), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]


def reference(pre: str) -> Tokenizer:
    """What the models with this `pre` do, from sources other than our table."""
    whole = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if pre == "gpt-2":
        return byte_level(None, [whole])
    if pre == "smollm":
        return byte_level(None, [pre_tokenizers.Digits(individual_digits=True), whole])
    if pre == "qwen2":
        regex = transformers_split("models.qwen2.tokenization_qwen2", "PRETOKENIZE_REGEX")
        return byte_level(normalizers.NFC(), cut_by(regex))
    if pre == "qwen35":
        return byte_level(
            normalizers.NFC(), cut_by(transformers_split("models.qwen3_5.tokenization_qwen3_5", "PRETOKENIZE_REGEX"))
        )
    splits = "integrations.gguf.gguf_tokenizer_mapping"
    if pre == "llama-bpe":
        return byte_level(None, cut_by(transformers_split(splits, "_LLAMA3_SPLIT")), ignore_merges=True)
    if pre == "smaug-bpe":
        return byte_level(None, cut_by(transformers_split(splits, "_LLAMA3_SPLIT")))
    if pre == "tekken":
        return byte_level(None, cut_by(transformers_split(splits, "_TEKKEN_SPLIT")), ignore_merges=True)
    return byte_level(None, cut_by(transformers_split(splits, "_GPT4O_SPLIT")))


@pytest.mark.parametrize("pre", [pre for pre in load_table("tokenizers")["pre_tokenizers"] if pre != "default"])
def test_byte_level_text_is_cut_as_by_the_models_own_tokenizer(pre: str):
    theirs = reference(pre)
    ours = build_tokenizer(metadata_of(theirs, pre, add_bos_token=False))
    for sample in SAMPLES:
        ids = ours.encode(sample).ids
        assert ids == theirs.encode(sample).ids, sample
        assert ours.decode(ids) == theirs.decode(ids)


def test_the_default_of_llama_cpp_cuts_digits_by_three_and_punctuation_apart():
    theirs = byte_level(None, [pre_tokenizers.ByteLevel(add_prefix_space=False)])
    cut = build_tokenizer(metadata_of(theirs, "default")).pre_tokenizer.pre_tokenize_str("a $12345+b")
    assert [piece for piece, _ in cut] == ["a", "Ġ", "$", "123", "45", "+", "b"]


def test_an_alias_is_the_pre_tokenizer_that_it_names():
    theirs = byte_level(None, [pre_tokenizers.ByteLevel(add_prefix_space=False)])
    ours = [build_tokenizer(metadata_of(theirs, pre)).to_str() for pre in ("llama-bpe", "llama3")]
    assert ours[0] == ours[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"pre": "poro-chat"},
            "tokenizer.ggml.pre is 'poro-chat', which is not supported; known are .*, llama-bpe, .*, smollm",
        ),
        ({"pre": None}, "tokenizer.ggml.pre is missing; known are "),
        ({"model": "bert"}, "tokenizer.ggml.model is 'bert'; known are gpt2, llama, gemma4"),
        ({"model": None}, "tokenizer.ggml.model is None; known are gpt2, llama, gemma4"),
        ({"tokens": None}, "tokenizer.ggml.tokens is missing: the file has no tokenizer"),
        ({"tokens": ["a", "a"]}, "tokenizer.ggml.tokens has a duplicate token"),
        ({"token_type": [1, 2]}, "tokenizer.ggml.token_type has 2 kinds for 96 tokens"),
        ({"merges": ["a  b"]}, "tokenizer.ggml.merges has a merge that is not two tokens"),
        ({"merges": ["zz yy"]}, "tokenizer.ggml.tokens and its merges do not fit together: .*zz"),
        (
            {"add_bos_token": True, "bos_token_id": None},
            "tokenizer.ggml.bos_token_id is missing, but add_bos_token asks",
        ),
        ({"eos_token_id": 1000}, "tokenizer.ggml.eos_token_id is 1000, but there are 96 tokens"),
        ({"model": "llama", "merges": None}, "tokenizer.ggml.scores has no score for each token"),
        ({"model": "llama", "remove_extra_whitespaces": True}, "remove_extra_whitespaces changes the text"),
        ({"tokenizer.chat_template": 7}, "tokenizer.chat_template is 7, not a string"),
    ],
)
def test_a_tokenizer_that_cannot_be_rebuilt_is_refused_by_key(changes: dict[str, Any], message: str, tmp_path: Path):
    with pytest.raises(CheckpointError, match=message):
        write_tokenizer(tiny(**changes), tmp_path)


@pytest.mark.parametrize(
    ("changes", "ids"),
    [
        ({}, [94]),
        ({"add_bos_token": True}, [1, 94]),
        ({"add_bos_token": True, "add_eos_token": True}, [1, 94, 2]),
        ({"pre": "llama-bpe"}, [1, 94]),  # llama.cpp's default for this pre-tokenizer
        ({"pre": "llama-bpe", "add_bos_token": False}, [94]),
    ],
)
def test_the_first_and_last_token_are_added_where_the_file_says_so(
    changes: dict[str, Any], ids: list[int], tmp_path: Path
):
    from transformers import AutoTokenizer

    write_tokenizer(tiny(**changes), tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer("ab")["input_ids"] == ids
    assert Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode("ab").ids == ids


def test_the_files_load_in_transformers_with_their_template_and_settings(tmp_path: Path):
    from transformers import AutoTokenizer, GenerationConfig

    write_tokenizer(tiny(), tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 0)
    assert tokenizer.model_max_length == 256
    assert tokenizer.apply_chat_template([{"role": "user", "content": "ab"}], tokenize=False) == "<s>ab<|im_end|>"
    assert tokenizer("<s>ab<|im_end|>")["input_ids"] == [1, 94, 2]
    generation = GenerationConfig.from_pretrained(tmp_path)
    assert (generation.bos_token_id, generation.eos_token_id, generation.pad_token_id) == (1, [2], 0)


def test_unused_tokens_are_left_out_and_user_defined_ones_match_whole():
    kinds = list(TINY_TOKENIZER["tokenizer.ggml.token_type"])
    tokens = list(TINY_TOKENIZER["tokenizer.ggml.tokens"])
    tokens[10], kinds[10] = "<think>", 4
    tokens[11], kinds[11] = "[PAD11]", 5
    tokenizer = build_tokenizer(tiny(tokens=tokens, token_type=kinds))
    assert tokenizer.encode("ab<think>ab").ids == [94, 10, 94]
    assert tokenizer.decode([94, 10], skip_special_tokens=True) == "ab<think>"
    assert tokenizer.token_to_id("[PAD11]") is None
    assert tokenizer.token_to_id("ab") == 94


def test_end_tokens_are_those_that_the_file_names_then_the_well_known_ones_it_marks():
    tokens = list(TINY_TOKENIZER["tokenizer.ggml.tokens"])
    tokens[5], tokens[6], tokens[7] = "<|endoftext|>", "<|eot_id|>", "<|eom_id|>"
    kinds = [3, 3, 3, 1, 1, 3, 3, 1, *[1] * 88]  # llama.cpp takes <|eom_id|> for a control token whatever its type
    assert end_token_ids(tiny(tokens=tokens, token_type=kinds)) == [2, 6, 7, 5]
    assert end_token_ids(tiny(tokens=tokens, token_type=kinds, eot_token_id=9)) == [2, 9, 6, 7, 5]


def test_gpt_oss_goes_on_after_the_end_of_a_part():
    """<|end|> closes what it thought; the answer ends with <|return|> or <|call|>."""
    tokens = list(TINY_TOKENIZER["tokenizer.ggml.tokens"])
    tokens[5], tokens[6], tokens[7] = "<|end|>", "<|return|>", "<|call|>"
    kinds = [3, 3, 3, 1, 1, 3, 3, 3, *[1] * 88]
    assert end_token_ids(tiny(tokens=tokens, token_type=kinds)) == [2, 6, 7]
    tokens[7] = "<|other|>"
    assert end_token_ids(tiny(tokens=tokens, token_type=kinds)) == [2, 5, 6]


def gemma4_metadata(**changes: Any) -> tuple[dict[str, int], list[tuple[str, str]], Metadata]:
    """A vocabulary and merges learned from TEXT as Gemma's are, spaces being letters, and the converter's pairs."""
    learned = Tokenizer(models.BPE(byte_fallback=True))
    learned.normalizer = normalizers.Replace(" ", "\u2581")
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<|turn>", "<turn|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=[*special, *(f"<0x{byte:02X}>" for byte in range(256))], show_progress=False
    )
    learned.train_from_iterator([TEXT] * 3, trainer)
    model = json.loads(learned.to_str())["model"]
    vocab, merges = model["vocab"], [tuple(merge) for merge in model["merges"]]
    tokens = sorted(vocab, key=vocab.__getitem__)
    pairs: dict[str, Any] = {
        "model": "gemma4",
        "pre": None,
        "tokens": tokens,
        "merges": [" ".join(merge) for merge in merges],
        "token_type": [3 if token in special else 6 if token.startswith("<0x") else 1 for token in tokens],
        "bos_token_id": 2,
        "eos_token_id": 1,
        "unknown_token_id": 3,
        "add_bos_token": True,
        "add_space_prefix": False,
    }
    return vocab, merges, tiny(**{**pairs, **changes})


def test_gemma4_text_is_cut_as_by_transformers_own_gemma_tokenizer():
    from transformers import GemmaTokenizer

    vocab, merges, metadata = gemma4_metadata()
    theirs, ours = GemmaTokenizer(vocab=vocab, merges=merges), build_tokenizer(metadata)
    for sample in [*SAMPLES[:-1], "<bos>x<eos>", "\n \n", "a  b   c"]:
        ids = theirs.encode(sample, add_special_tokens=False)
        assert ours.encode(sample, add_special_tokens=False).ids == ids, sample
        assert ours.decode(ids, skip_special_tokens=False) == theirs.decode(ids), sample
    assert ours.encode("a").ids == theirs.encode("a", add_special_tokens=False)  # the template writes <bos>
    assert end_token_ids(metadata) == [1, 6]


def test_a_gemma4_tokenizer_without_merges_is_refused():
    with pytest.raises(CheckpointError, match=r"tokenizer.ggml.merges is missing, which a gemma4 tokenizer needs"):
        build_tokenizer(gemma4_metadata(merges=None)[2])


def typed(kinds: list[int], **changes: Any) -> list[int]:
    tokens = list(TINY_TOKENIZER["tokenizer.ggml.tokens"])
    for index, text in changes.pop("texts", {}).items():
        tokens[index] = text
    return build_tokenizer(tiny(tokens=tokens, token_type=kinds, **changes)).encode("<s>ab<|im_end|>").ids


def test_tokens_that_a_key_names_are_found_whole_whatever_their_type_says():
    ordinary = [1] * 96
    assert typed([3, 3, 3, *ordinary[3:]]) == typed(ordinary) == [1, 94, 2]
    assert typed(ordinary, bos_token_id=None)[0] != 1  # nothing names <s> now, and it is cut
    assert typed(ordinary, eos_token_id=None)[-1] == 2  # <|im_end|> looks like a control token
    assert typed(None) == [1, 94, 2]  # a file without types


def test_ordinary_text_that_a_key_names_stays_ordinary():
    """Some converters name token 0 as padding, whatever it is; a merge may make the token too."""
    kinds = [1] * 96
    tokens = list(TINY_TOKENIZER["tokenizer.ggml.tokens"])
    for named in (tokens.index("a"), tokens.index("ab")):
        tokenizer = build_tokenizer(tiny(token_type=kinds, padding_token_id=named))
        assert [token.content for token in tokenizer.get_added_tokens_decoder().values()] == ["<s>", "<|im_end|>"]


def test_an_end_of_an_older_model_is_none_beside_gemma4s():
    tokens = list(TINY_TOKENIZER["tokenizer.ggml.tokens"])
    tokens[5], tokens[6] = "</s>", "<|tool_response>"
    assert end_token_ids(tiny(tokens=tokens)) == [2, 6]
    tokens[6] = "<other>"
    assert end_token_ids(tiny(tokens=tokens)) == [2, 5]


@pytest.mark.parametrize("templates", [{"": "a"}, {"": "a", "rag": "b"}, {"rag": "b"}])
def test_templates_are_kept_by_name(tmp_path: Path, templates: dict[str, str]):
    keys = {f"tokenizer.chat_template{'.' if name else ''}{name}": text for name, text in templates.items()}
    write_tokenizer(tiny(**{"tokenizer.chat_template": None, **keys}), tmp_path)
    found = json.loads((tmp_path / "tokens.json").read_text())["chat_templates"]
    assert found == {name or "default": text for name, text in templates.items()}


@pytest.mark.parametrize(
    ("changes", "rows", "message"),
    [
        ({}, 96, None),
        ({}, 200, None),
        ({}, 95, "tokenizer.ggml.tokens has 'Ġab' with id 95, but the table has 95 rows"),
        ({"tokenizer.chat_template": "{% if %}"}, 96, "tokenizer.chat_template is not a template: line 1: "),
        ({"tokenizer.chat_template.rag": "{{ 1|odd }}"}, 96, "tokenizer.chat_template.rag is not a template: line 1: "),
    ],
)
def test_what_cannot_be_used_is_refused_before_anything_is_converted(
    changes: dict[str, Any], rows: int, message: str | None
):
    if message is None:
        check_tokenizer(tiny(**changes), rows)
        return
    with pytest.raises(CheckpointError) as caught:
        check_tokenizer(tiny(**changes), rows)
    assert caught.value.problems[0].startswith(f"model.gguf: {message}")
