"""Text that is not a recipe's YAML: each refusal in full, and what unquoted words mean."""

import pytest
import yaml

from coreai_recipes.recipe import yaml_reader
from coreai_recipes.recipe.yaml_reader import read_yaml


@pytest.fixture(params=["libyaml", "python"], autouse=True)
def loader(request, monkeypatch):
    """Both of PyYAML's parsers: not every installation has libyaml's."""
    classes = {"libyaml": getattr(yaml, "CSafeLoader", None), "python": yaml.SafeLoader}
    if classes[request.param] is None:
        pytest.skip("PyYAML without libyaml")
    monkeypatch.setattr(yaml_reader, "_Loader", classes[request.param])


def problems_of(source: bytes | str) -> list[str]:
    return [f"{problem.mark}: {problem.message}" for problem in read_yaml(source, "r.yaml")[1]]


BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
LADDER = f"a0: &a0 {'[' * 30}{']' * 30}\n" + "".join(
    f"a{i}: &a{i} {'[' * 30}*a{i - 1}{']' * 30}\n" for i in range(1, 9)
)

REFUSED = {
    b"": "r.yaml:1:1: empty: a recipe starts with `recipe: 1`",
    b"# nothing\n": "r.yaml:1:1: empty: a recipe starts with `recipe: 1`",
    b"a: 1\na: 2\n": "r.yaml:2:1: `a` is a duplicate key, first given at line 1",
    b"a: {b: 1, b: 2}": "r.yaml:1:11: `b` is a duplicate key, first given at line 1",
    b"a: 1\n---\nb: 2\n": "r.yaml:2:1: a second document: a recipe is one document, without `---`",
    b"a: !!python/object/apply:os.system [ls]": (
        "r.yaml:1:4: tag `tag:yaml.org,2002:python/object/apply:os.system`: a recipe is plain data and has no tags"
    ),
    b"a: !mine 1": "r.yaml:1:4: tag `!mine`: a recipe is plain data and has no tags",
    b"a: *b": "r.yaml:1:4: alias `*b` refers to no earlier anchor",
    b"a: &a [*a]": "r.yaml:1:8: alias `*a` refers to the anchor that contains it",
    b"a: &a {b: 1}\nc: {<<: *a}": "r.yaml:2:5: `<<` does not merge in a recipe: use `extends` or `like`",
    b"? [a]\n: 1": "r.yaml:1:3: a key must be a string, not a list or a mapping",
    b"&a a: 1\n*a : 2": "r.yaml:2:1: a key must be a string, not an alias",
    b"a: 010": "r.yaml:1:4: 010 starts with 0, which some parsers read as octal: write 10",
    b"a: " + b"9" * 41: "r.yaml:1:4: a number of 41 digits",
    b"a: \xff": "r.yaml:1:4: not UTF-8: byte 0xff",
    "a: b\n".encode("utf-16"): "r.yaml:1:1: not UTF-8: byte 0xff",
    b"a: 1\nb: \x00": "r.yaml:2:4: control character U+0000 is not allowed in YAML",
    b"a: " + b"x" * (1 << 20): "r.yaml:1:1: larger than 1 MiB: a recipe is a page of text",
    b"[" * 900: "r.yaml:1:65: nested deeper than 64 levels",
    b"{a: " * 100_000: "r.yaml:1:257: nested deeper than 64 levels",
    "".join(f"{' ' * i}a:\n" for i in range(1000)).encode(): "r.yaml:65:65: nested deeper than 64 levels",
    BOMB.encode(): "r.yaml:5:36: more than 100000 valuesonce aliases are expanded",
    LADDER.encode(): "r.yaml:3:39: alias `*a1` nests deeper than 64 levels",
}


@pytest.mark.parametrize("source", REFUSED, ids=lambda source: source[:20])
def test_each_refusal_is_one_sentence_with_its_place(source):
    assert problems_of(source) == [REFUSED[source]]


def test_a_nesting_beyond_what_libyaml_itself_takes_is_said_in_the_same_words():
    (problem,) = problems_of(b"[" * 100_000)
    assert problem.startswith("r.yaml:1:")
    assert problem.endswith(": nested deeper than 64 levels")


@pytest.mark.parametrize("source", [b"a: [1", b"a: 1\n b: 2", b"a: @b", b'a: "\\q"', b"%YAML 3.0\n---\na: 1", b"a: 'b"])
def test_what_is_not_yaml_at_all_is_said_with_its_place(source):
    (problem,) = problems_of(source)
    assert problem.startswith("r.yaml:")
    assert ": not YAML: " in problem
    assert "\n" not in problem


def test_every_repeated_key_and_tag_is_reported_at_once():
    assert problems_of(b"a: 1\na: 2\nb: !x 1\nb: 010\n") == [
        "r.yaml:2:1: `a` is a duplicate key, first given at line 1",
        "r.yaml:3:4: tag `!x`: a recipe is plain data and has no tags",
        "r.yaml:4:1: `b` is a duplicate key, first given at line 3",
        "r.yaml:4:4: 010 starts with 0, which some parsers read as octal: write 10",
    ]


MEANINGS = {
    "1e-6": 1e-6,
    "1E5": 1e5,
    ".5": 0.5,
    "-2.": -2.0,
    "0o17": 15,
    "0x1F": 31,
    "+12": 12,
    "0": 0,
    "true": True,
    "False": False,
    "yes": "yes",
    "no": "no",
    "on": "on",
    "off": "off",
    "y": "y",
    "null": None,
    "~": None,
    "1_000": "1_000",
    "1:30": "1:30",
    "2024-01-01": "2024-01-01",
    "'1'": "1",
    '"true"': "true",
    "1.2.3": "1.2.3",
    ".inf": float("inf"),
    "-.INF": float("-inf"),
}


@pytest.mark.parametrize("word", MEANINGS)
def test_words_mean_what_yaml_1_2_says(word):
    root, problems = read_yaml(f"a: {word}".encode(), "r.yaml")
    assert problems == []
    value = root.plain()["a"]
    assert (type(value), value) == (type(MEANINGS[word]), MEANINGS[word])


def test_an_alias_may_stand_for_a_value_that_is_small():
    root, problems = read_yaml(b"a: &a {b: [1, 2]}\nc: *a\n", "r.yaml")
    assert problems == []
    assert root.plain() == {"a": {"b": [1, 2]}, "c": {"b": [1, 2]}}


def test_a_byte_order_mark_is_no_character_of_the_first_line():
    root, problems = read_yaml(b"\xef\xbb\xbfa: 1", "r.yaml")
    assert (root.plain(), problems) == ({"a": 1}, [])
    assert str(root.value["a"].mark) == "r.yaml:1:4"


def test_an_options_value_has_a_place_without_lines():
    assert problems_of("{a: 1, a: 2}") == ["r.yaml: `a` is a duplicate key, first given before"]
