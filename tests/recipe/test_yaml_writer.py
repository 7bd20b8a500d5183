"""What is written is read back as it was, by us and by YAML 1.1 readers."""

import math

import yaml
from hypothesis import given
from hypothesis import strategies as st

from coreai_recipes.recipe.yaml_reader import read_yaml
from coreai_recipes.recipe.yaml_writer import write_yaml

SCALARS = st.none() | st.booleans() | st.integers(-(10**12), 10**12) | st.floats(allow_nan=False, allow_infinity=False)
WORDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20) | st.sampled_from(
    ["yes", "No", "null", "1e-6", "010", "~", "", "a: b", "- a", "#", "1:30", ".inf", "0x1", "é", "\x85", "\U0001f600"]
)
VALUES = st.recursive(
    SCALARS | WORDS,
    lambda below: (
        st.lists(below, max_size=4) | st.dictionaries(WORDS.filter(lambda key: key != "<<"), below, max_size=4)
    ),
    max_leaves=12,
)


@given(st.dictionaries(WORDS.filter(lambda key: key != "<<"), VALUES, min_size=1, max_size=4))
def test_what_is_written_is_read_back(data):
    root, problems = read_yaml(write_yaml(data).encode(), "r.yaml")
    assert problems == []
    assert root.plain() == data


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_yaml_1_1_reader_takes_our_numbers_for_numbers(number):
    read = yaml.safe_load(write_yaml({"a": number}))["a"]
    assert isinstance(read, float)
    assert read == number or math.isclose(read, number)


def test_short_collections_stand_in_brackets_and_rows_do_not():
    rows = [{"repeat": 2, "of": ["a", "b"]}, {"repeat": 1, "of": ["a"]}]
    assert write_yaml({"norm": {"kind": "rms", "eps": 1e-6}, "none": [], "layers": rows}) == (
        "norm: {kind: rms, eps: 1.0e-06}\nnone: []\nlayers:\n  - {repeat: 2, of: [a, b]}\n  - {repeat: 1, of: [a]}\n"
    )
