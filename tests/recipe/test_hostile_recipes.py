"""Whatever the text, loading it answers with a recipe or a RecipeError, and soon."""

import copy
import os
import random
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coreai_recipes.errors import RecipeError
from coreai_recipes.recipe import load_resolved
from coreai_recipes.recipe.yaml_reader import read_yaml
from coreai_recipes.recipe.yaml_writer import write_yaml

GEMMA4 = Path(__file__).with_name("gemma4-e2b.yaml").read_text()
ANYHOW = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
PIECES = st.sampled_from(
    [*"[]{},:#%?~>'\"\t\r\0", "\n", "\n  ", "- ", ": ", "---", "...", "<<", "&a ", "*a", "!x ", ".nan"]
) | (st.sampled_from(["a", "model", "kinds", "like", "extends", "kind", "full"]))
JUNK = st.sampled_from(
    [None, True, -1, 0, 0.5, 1.5, 10**39, float("inf"), "full", "x", "", [], {}, [[]], {"kind": "full"}, {"a": 1}]
)
STEPS = st.sampled_from(
    ["model", "kinds", "full", "sliding", "layers", "0", "repeat", "attention", "rotary", "factor", "kind", "", "like"]
)


def answer(text: str | bytes, *overrides: str) -> None:
    Path("r.yaml").write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    try:
        resolved = load_resolved("r.yaml", overrides)
    except RecipeError as error:
        strange = [line for line in error.problems if not line.startswith(("r.yaml:", "--set")) or line.count("\n") > 1]
        if strange or not error.problems:
            pytest.fail(f"not a finished line: {strange}")
    else:
        Path("again.yaml").write_text(resolved.text())
        assert load_resolved("again.yaml").recipe == resolved.recipe


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@given(st.text(max_size=200) | st.lists(PIECES, max_size=40).map("".join))
@ANYHOW
def test_any_text_is_answered(text):
    answer(text)


@given(st.binary(max_size=100))
@ANYHOW
def test_any_bytes_are_answered(content):
    answer(content)


@given(st.lists(st.tuples(st.integers(0, len(GEMMA4)), st.integers(0, 8), PIECES), min_size=1, max_size=6))
@ANYHOW
def test_a_recipe_with_words_cut_and_pasted_is_answered(edits):
    text = GEMMA4
    for place, length, piece in edits:
        text = text[:place] + piece + text[place + length :]
    answer(text)


@given(st.integers(0, 10**9), st.lists(JUNK, min_size=1, max_size=4))
@ANYHOW
def test_a_recipe_with_values_replaced_or_removed_is_answered(seed, values):
    chance = random.Random(seed)
    data = copy.deepcopy(read_yaml(GEMMA4.encode(), "r.yaml")[0].plain())
    for value in values:
        holder, key = chance.choice(list(places(data)))
        if chance.random() < 0.3:
            del holder[key]
        else:
            holder[key] = copy.deepcopy(value)  # several places may be given the same one
        if not data:
            return
    answer(write_yaml(data).replace(" inf", " .inf").replace("inf.0", ".inf"))


def places(data):
    """Every (holder, key) of nested mappings and lists."""
    for key in list(data) if isinstance(data, dict) else range(len(data)):
        yield data, key
        if isinstance(data[key], dict | list):
            yield from places(data[key])


@given(st.lists(st.lists(STEPS, max_size=6).map(".".join), min_size=1, max_size=3), st.text(max_size=8) | PIECES)
@ANYHOW
def test_any_set_is_answered(keys, value):
    answer(GEMMA4, *(f"{key}={value}" for key in keys))


SMALL_HEAD = "recipe: 1\nname: x\nmodel:\n  kinds:\n"


@pytest.mark.parametrize(
    "text",
    [
        "".join(f"k{i}: 3\n" for i in range(40_000)),
        SMALL_HEAD + "".join(f"    k{i}: {{like: k{i + 1}}}\n" for i in range(10_000)),
        SMALL_HEAD + "".join(f"    k{i}: {{like: k{i + 1}}}\n" for i in range(63)),
        SMALL_HEAD
        + f"    big: {{attention: {{{', '.join(f'a{i}: 1' for i in range(20_000))}}}}}\n"
        + "".join(f"    k{i}: {{like: big}}\n" for i in range(60)),
        "recipe: 1\nmodel:\n  layers:\n" + "    - {repeat: 1024, of: [a, b, c, d]}\n" * 5_000,
        "recipe: 1\nmodel:\n  kinds: {a: {}}\n  layers:\n" + "    - unknown\n" * 40_000,
    ],
    ids=["unknown keys", "10000 kinds in a row", "63 kinds in a row", "like of something large", "repeats", "layers"],
)
def test_large_nonsense_is_answered_soon(text):
    started = time.process_time()
    answer(text)
    assert time.process_time() - started < 10


def test_a_pipe_without_a_writer_is_empty_and_one_with_a_writer_is_read(tmp_path: Path) -> None:
    """The first used to be waited for, without an end; `recipe validate <(...)` is the second."""
    os.mkfifo(tmp_path / "pipe.yaml")
    with pytest.raises(RecipeError, match=r"pipe\.yaml:1:1: empty: a recipe starts with `recipe: 1`"):
        load_resolved(tmp_path / "pipe.yaml")
    reading, writing = os.pipe()
    with os.fdopen(writing, "wb") as file:
        file.write(GEMMA4.encode())
    assert load_resolved(f"/dev/fd/{reading}").recipe.name == "gemma4-e2b"
    os.close(reading)
