"""Ids that only transformers gives a checkpoint's tokens have a row in its table, or no bundle is sealed with them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from coreai_recipes.bundle import build
from coreai_recipes.checkpoint.safetensors import SafetensorsCheckpoint
from coreai_recipes.checkpoint.tokenizer_files import check_ids
from coreai_recipes.errors import CheckpointError
from coreai_recipes.tokenizer.files import FileError, read_object
from coreai_recipes.tokenizer.tokens import read_tokens

TINY = Path(__file__).parent.parent / "checkpoints" / "tiny-llama"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    shutil.copytree(TINY, tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def edit(path: Path, **changes: Any) -> None:
    document = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**document, **changes}))


@pytest.mark.parametrize(
    ("file", "changes", "told"),
    [
        ("tokenizer_config.json", {"eos_token": "<|nowhere|>"}, "the token '<|nowhere|>' with id 512"),
        ("tokenizer_config.json", {"extra_special_tokens": {"x_token": "<|new|>"}}, "the token '<|new|>' with id 512"),
        ("special_tokens_map.json", {"additional_special_tokens": ["<|new|>"]}, "the token '<|new|>' with id 512"),
        ("generation_config.json", {"eos_token_id": [0, 999]}, "an end token with id 999"),
    ],
)
def test_an_id_beyond_the_tables_rows_is_refused_before_anything_is_sealed(
    checkpoint: Path, tmp_path: Path, file: str, changes: dict[str, Any], told: str
) -> None:
    """A bundle used to be sealed with such ids."""
    edit(checkpoint / file, **changes)
    with pytest.raises(CheckpointError) as refused:
        build("tiny-llama", checkpoint, tmp_path / "dist", verified=False)
    assert refused.value.problems == (
        f"checkpoint {checkpoint}: {told}, but the table has 512 rows: "
        "use the tokenizer and generation_config.json that the weights were trained with",
    )
    assert not (tmp_path / "dist/tiny-llama").exists()


@pytest.mark.parametrize(
    ("ids", "ends"), [(50256, [0]), ([50256, 3], [3])], ids=["the tokenizer's own instead", "the others remain"]
)
def test_a_default_end_of_transformers_class_beyond_the_rows_is_nobodys_choice(
    checkpoint: Path, tmp_path: Path, ids: object, ends: list[int]
) -> None:
    """transformers writes GPT-2's 50256 beside any table; such a checkpoint used to be refused."""
    edit(checkpoint / "config.json", model_type="gpt2", eos_token_id=50256)
    edit(checkpoint / "generation_config.json", eos_token_id=ids)
    (tmp_path / "bundle").mkdir()
    source = SafetensorsCheckpoint(checkpoint)
    source.write_tokenizer(tmp_path / "bundle")
    tokens = read_tokens(tmp_path / "bundle")
    check_ids(tokens, tmp_path / "bundle", 512, source.place)
    assert list(tokens.end_tokens) == ends


def test_validate_looks_at_the_tokenizers_files(checkpoint: Path, run: Callable[..., tuple[int, str, str]]) -> None:
    assert run("validate", "tiny-llama", "--checkpoint", checkpoint)[0] == 0
    edit(checkpoint / "tokenizer_config.json", chat_template="{% if %}")
    status, _, err = run("validate", "tiny-llama", "--checkpoint", checkpoint)
    assert status == 2
    assert "its chat template is invalid" in err


def test_a_document_of_ten_thousand_lists_is_said_to_be_nested_too_deeply(tmp_path: Path) -> None:
    (tmp_path / "tokens.json").write_text('{"a": ' + "[" * 10_000 + "]" * 10_000 + "}")
    with pytest.raises(FileError, match=r"tokens\.json is not JSON: it is nested too deeply"):
        read_object(tmp_path / "tokens.json")
