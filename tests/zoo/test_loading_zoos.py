"""A zoo.yaml is read with its cells in order, or with every mistake at its place."""

from pathlib import Path

import pytest
from zoos import TINY, write_zoo

from coreai_recipes.errors import RecipeError
from coreai_recipes.recipe.source import data_folder
from coreai_recipes.zoo.loading import load_zoo

MISTAKES = """\
zoo: 2
recipes: [qwen3-0.6b, gema4, tiny-llama, tiny-llama]
checkpoints: {qwen3: random, tiny-llama: ./nowhere}
vary: {bits: [16, 5], device: [iphone-17-prro], fromat: [coreml]}
skip:
  - {recipe: gemma, bits: 16}
  - {recipe: tiny-llama, color: red}
store: 7
"""


def test_eleven_mistakes_are_all_told_with_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "zoo.yaml"
    path.write_text(MISTAKES)
    with pytest.raises(RecipeError) as raised:
        load_zoo(path)
    at = str(path)
    assert str(raised.value).splitlines() == [
        f"{at}:1:6: zoo: 2 is not `1`",
        "  the version of this language: 1",
        f"{at}:2:23: recipes.1: {tmp_path}/gema4: no such file, and no built-in recipe of that name",
        "  did you mean `gemma4`? `recipe list` names the built-in ones",
        f"{at}:2:42: recipes.3: `tiny-llama` has the name tiny-llama too: the cells of a zoo are told apart by it",
        "  leave one out, or rename it",
        f"{at}:3:15: checkpoints.qwen3: no recipe of that name is listed",
        "  available: qwen3-0.6b, gema4, tiny-llama, tiny-llama",
        f"{at}:3:42: checkpoints.tiny-llama: `./nowhere`: no such folder or file",
        "  a path is relative to zoo.yaml; a hub id is ORG/NAME or ORG/NAME@REVISION",
        f"{at}:4:19: vary.bits.1: 5 is not one of `1`, `2`, `3`, `4`, `6`, `8`, `16`",
        f"{at}:4:32: vary.device.0: `iphone-17-prro` is not a device that is known",
        "  did you mean `iphone-17-pro`?",
        f"{at}:4:49: vary.fromat: unknown key",
        "  did you mean `format`?",
        f"{at}:6:14: skip.0.recipe: `gemma` is not among the recipes",
        "  did you mean `gema4`?",
        f"{at}:7:26: skip.1.color: unknown key",
        "  available: recipe, bits, device, format",
        f"{at}:8:8: store: 7 is not a word",
        "  a folder, or any address that fsspec knows, as s3://bucket/zoo",
    ]


def test_problems_of_its_recipes_are_told_beside_its_own(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("extends: tiny-llama\nexport: {context: 0}\n")
    with pytest.raises(RecipeError) as raised:
        load_zoo(write_zoo(tmp_path, "recipes: [./mine.yaml]\nskip: [{bits: 4}]\n"))
    where = f"{tmp_path}/mine.yaml:2:19: export.context: 0 is not in [2, 1048576]"
    assert str(raised.value) == f"{where}\n  positions that a session can hold"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "recipes: [tiny-llama]\nskip: [{bits: 4}]\n",
            "4:8: skip.0: no cell has all of that\n  leave it out, or mend it",
        ),
        (
            "recipes: [tiny-llama]\nvary: {bits: [4]}\nskip: [{bits: 4}]\n",
            "5:1: skip: every cell is skipped\n  leave one of them out",
        ),
        ("recipes: [tiny-llama\n", "4:1: not YAML: did not find expected ',' or ']'"),
    ],
)
def test_a_zoo_that_is_not_meant_is_refused(tmp_path: Path, text: str, problem: str) -> None:
    path = write_zoo(tmp_path, text)
    with pytest.raises(RecipeError) as raised:
        load_zoo(path)
    assert str(raised.value) == f"{path}:{problem}"


def test_an_empty_file_and_one_that_is_not_there_are_a_sentence_each(tmp_path: Path) -> None:
    path = tmp_path / "zoo.yaml"
    with pytest.raises(RecipeError) as raised:
        load_zoo(path)
    assert str(raised.value) == f"{path}: cannot be read: no such file or directory"
    path.write_text("")
    with pytest.raises(RecipeError) as raised:
        load_zoo(path)
    assert str(raised.value) == f"{path}:1:1: empty: a zoo starts with `zoo: 1`"


def test_the_schema_for_editors_is_that_of_the_models(tmp_path: Path) -> None:
    from jsonschema import Draft7Validator

    from coreai_recipes.zoo.json_schema import json_schema, schema_text

    assert (data_folder("schemas") / "zoo.schema.json").read_text() == schema_text()
    said = {"zoo": 1, "recipes": ["tiny-llama"], "vary": {"bits": [16]}, "store": "store"}
    validator = Draft7Validator(json_schema())
    assert not list(validator.iter_errors(said))
    assert [error.message for error in validator.iter_errors({**said, "vary": {"bits": [5]}})]


def test_cells_are_all_combinations_but_the_skipped_and_a_device_is_core_mls_alone(tmp_path: Path) -> None:
    text = (
        "recipes: [tiny-llama, gemma4-tiny]\ncheckpoints: {tiny-llama: CHECKPOINT, gemma4-tiny: random}\n"
        "vary: {bits: [16, 4], device: [iphone-17-pro, m1], format: [coreml, coreai]}\n"
        "skip: [{recipe: gemma4-tiny, bits: 16}, {device: m1, bits: 4}]\n"
    )
    loaded = load_zoo(write_zoo(tmp_path, text))
    assert loaded.store == str(tmp_path / "store")
    assert [cell.words for cell in loaded.cells] == [
        "tiny-llama, 16 bits, iphone-17-pro, coreml",
        "tiny-llama, 4 bits, iphone-17-pro, coreml",
        "tiny-llama, 16 bits, m1, coreml",
        "tiny-llama, 16 bits, coreai",
        "tiny-llama, 4 bits, coreai",
        "gemma4-tiny, 4 bits, iphone-17-pro, coreml",
        "gemma4-tiny, 4 bits, coreai",
    ]
    assert [cell.checkpoint for cell in loaded.cells] == [str(TINY)] * 5 + ["random"] * 2
