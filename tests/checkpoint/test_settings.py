"""What a folder of safetensors says beside its tensors: end tokens and a tokenizer."""

import json

import pytest
from checkpoint_files import pack, write_folder

from coreai_recipes.checkpoint.safetensors import SafetensorsCheckpoint
from coreai_recipes.checkpoint.settings import check_token_ids, read_settings
from coreai_recipes.errors import CheckpointError

# Settings and tokenizer


@pytest.mark.parametrize(
    ("generation", "config", "expected"),
    [
        ({"eos_token_id": [7, 5, 7]}, {"eos_token_id": 2}, [7, 5]),
        ({"eos_token_id": None}, {"eos_token_id": 2}, [2]),
        (None, {"eos_token_id": 2}, [2]),
        (None, {"text_config": {"eos_token_id": [1, 106]}}, [1, 106]),
        (None, {}, []),
    ],
)
def test_end_tokens_come_from_the_generation_config_first(tmp_path, generation, config, expected):
    write_folder(tmp_path, pack({}, b""))
    (tmp_path / "config.json").write_text(json.dumps(config))
    if generation is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    assert SafetensorsCheckpoint(tmp_path).eos_token_ids() == expected


def test_an_end_token_that_is_no_id_is_refused(tmp_path):
    write_folder(tmp_path, pack({}, b""))
    (tmp_path / "config.json").write_text('{"eos_token_id": ["</s>"]}')
    with pytest.raises(CheckpointError, match=r"eos_token_id is \['</s>'\], neither a token id nor a list of them"):
        SafetensorsCheckpoint(tmp_path).eos_token_ids()


def test_an_end_token_that_no_tokenizer_has_is_no_id() -> None:
    """transformers' tokenizer raised OverflowError, at the end of a build."""
    with pytest.raises(CheckpointError, match=r"eos_token_id is 99999999999999999999, neither a token id nor a list"):
        check_token_ids(99999999999999999999, "here")


def test_the_tokenizer_is_copied_as_the_checkpoint_has_it(tmp_path):
    source, target = write_folder(tmp_path / "source", pack({}, b"")), tmp_path / "target"
    target.mkdir()
    files = ["tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja"]
    contents = dict.fromkeys([*files, "README.md", "tokenizer.py"], "{}")
    contents["tokenizer.json"] = '{"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}}  '
    contents["additional_chat_templates/rag.jinja"] = "rag"
    (source / "additional_chat_templates").mkdir()
    for name, content in contents.items():
        (source / name).write_text(content)
    SafetensorsCheckpoint(source).write_tokenizer(target)
    copied = {path.relative_to(target).as_posix(): path.read_text() for path in target.rglob("*") if path.is_file()}
    assert copied.keys() == {*files, "additional_chat_templates/rag.jinja", "tokens.json"}
    assert {name: text for name, text in copied.items() if name != "tokens.json"} == {
        name: contents[name] for name in copied if name != "tokens.json"
    }


def test_a_slow_tokenizer_is_converted(tmp_path):
    source, target = write_folder(tmp_path / "source", pack({}, b"")), tmp_path / "target"
    target.mkdir()
    words = ["<|endoftext|>", "a", "b", "ab", "Ġ", "Ġab"]
    (source / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(words)}))
    (source / "merges.txt").write_text("#version: 0.2\na b\nĠ ab\n")
    (source / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')
    SafetensorsCheckpoint(source).write_tokenizer(target)
    from tokenizers import Tokenizer

    assert Tokenizer.from_file(str(target / "tokenizer.json")).encode("ab ab").ids == [3, 5]


def test_a_checkpoint_without_a_tokenizer_says_so(tmp_path):
    ours = SafetensorsCheckpoint(write_folder(tmp_path, pack({}, b"")))
    with pytest.raises(CheckpointError, match="has no tokenizer: neither tokenizer"):
        ours.write_tokenizer(tmp_path)


def test_an_infinity_of_either_spelling_is_the_same(tmp_path):
    """mamba2 of transformers 4 has `"time_step_limit": [0.0, Infinity]`, that of 5 an object."""
    path = tmp_path / "config.json"
    path.write_text('{"time_step_limit": [0.0, Infinity]}')
    older = read_settings(path, "here")
    path.write_text('{"time_step_limit": [0.0, {"__float__": "Infinity"}]}')
    assert older == read_settings(path, "here") == {"time_step_limit": [0.0, {"__float__": "Infinity"}]}
