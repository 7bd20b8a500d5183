"""The text that weights are fitted to: what there is of it, what is refused, how recipes say it."""

import json
from pathlib import Path

import pytest

from coreai_recipes.calibration.text import default_texts, hold_texts, read_windows
from coreai_recipes.errors import RecipeError, UserError
from coreai_recipes.recipe import load_recipe, load_resolved, recipe_text
from coreai_recipes.recipe.schema import Calibration

TINY = Path(__file__).parents[1] / "checkpoints" / "tiny-llama"


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    """A token a word, and one that stands for all others; a bos before each text."""
    words = {word: number for number, word in enumerate(("<unk>", "<s>", "the", "of", "and"))}
    bos = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    content = {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [bos, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [bos, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": words, "unk_token": "<unk>"},
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    return tmp_path


def said(*names: str, tokens: int = 512) -> Calibration:
    return Calibration(text=list(names), tokens=tokens)


def test_the_default_text_is_enough_and_has_its_sources_named() -> None:
    listed = (default_texts()[0].parent / "SOURCES.md").read_text()
    assert len(default_texts()) >= 10
    for path in default_texts():
        assert f"`{path.name}`" in listed
    texts = "\n".join(path.read_text() for path in default_texts())
    assert len(texts) > 80_000
    for held in ("In the beginning God created", "GNU GENERAL PUBLIC", "Paul, and Silvanus, and Timotheus"):
        assert held not in texts


def test_windows_are_of_each_file_in_turn_and_begin_as_a_text_does(tokenizer: Path) -> None:
    (tokenizer / "a.txt").write_text("the of " * 1000)
    (tokenizer / "b.txt").write_text("and " * 1500)
    windows, notes = read_windows(said("a.txt", "b.txt", tokens=2048), tokenizer, 4096, tokenizer)
    assert [len(window) for window in windows] == [512] * 4
    assert [window[:3] for window in windows] == [[1, 2, 3], [1, 4, 4], [1, 3, 2], [1, 4, 4]]
    assert not notes
    shorter, _ = read_windows(said("a.txt", tokens=600), tokenizer, 100, tokenizer)
    assert [len(window) for window in shorter] == [100] * 6


def test_a_text_that_is_too_short_or_unreadable_is_refused_in_a_sentence(tokenizer: Path) -> None:
    (tokenizer / "short.txt").write_text("the of and " * 100)
    with pytest.raises(UserError) as short:
        read_windows(said("short.txt"), tokenizer, 4096, tokenizer)
    assert str(short.value) == (
        "compress.calibration.text: 300 tokens, but 512 are asked for\n"
        "  add text, or ask for fewer with `compress.calibration.tokens`"
    )
    (tokenizer / "other.txt").write_text("der die das und " * 1000)
    with pytest.raises(UserError) as other:
        read_windows(said("other.txt"), tokenizer, 4096, tokenizer)
    assert str(other.value) == (
        "compress.calibration.text: 100% of its tokens are the tokenizer's unknown token\n"
        "  name files of text that the model reads, or `calibration: null` for none"
    )
    (tokenizer / "bytes.txt").write_bytes(b"\xff\xfe" * 4000)
    with pytest.raises(UserError, match=r"compress.calibration.text: .*bytes.txt is not UTF-8"):
        read_windows(said("bytes.txt"), tokenizer, 4096, tokenizer)


def test_a_text_of_another_language_than_the_tokenizers_is_said(tmp_path: Path) -> None:
    from coreai_recipes.checkpoint.open import open_checkpoint

    open_checkpoint(TINY).write_tokenizer(tmp_path)
    (tmp_path / "a.txt").write_text("Быть или не быть, вот в чём вопрос. " * 200)
    _, (note,) = read_windows(said("a.txt"), tmp_path, 512, tmp_path)
    assert note.endswith("so the model is fitted to text that it hardly reads")


def test_files_are_seen_from_the_recipe_that_names_them(tmp_path: Path) -> None:
    (tmp_path / "there.txt").write_text("text")
    path = tmp_path / "r.yaml"
    path.write_text("extends: tiny-llama\ncompress:\n  calibration:\n    text: [there.txt, gone.txt]\n")
    resolved = load_resolved(path)
    with pytest.raises(RecipeError) as error:
        hold_texts(resolved.recipe, resolved)
    assert list(error.value.problems) == [
        f"{path}:4:23: compress.calibration.text.1: `gone.txt`: no such file in {tmp_path}\n"
        "  paths are relative to the recipe"
    ]


def test_no_calibration_is_said_by_null_and_absence_is_the_default(tmp_path: Path) -> None:
    default = load_recipe("tiny-llama", ["compress.default.kind=palettize", "compress.default.bits=4"])
    assert default.compress is not None
    assert default.compress.calibration == Calibration()
    assert "calibration" not in recipe_text(default)
    base, child = tmp_path / "base.yaml", tmp_path / "child.yaml"
    base.write_text("extends: tiny-llama\ncompress: {calibration: {tokens: 1024}}\n")
    child.write_text("extends: base.yaml\ncompress: {calibration: null}\n")
    for source in (base, child):
        recipe = load_recipe(source)
        again = tmp_path / "again.yaml"
        again.write_text(recipe_text(recipe))
        assert load_recipe(again) == recipe
    assert load_recipe(child).compress is not None
    assert load_recipe(child).compress.calibration is None  # type: ignore[union-attr]
