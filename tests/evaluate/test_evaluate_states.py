"""States: written in place where nobody can tell, and copied where somebody could."""

from pathlib import Path
from typing import Any

import pytest
import torch
from coremltools.converters.mil.mil import Builder as mb
from mil_programs import write_package

from coreai_recipes.evaluate import EvaluationError, Program

CACHE = ("float16", (2, 4, 3))


def program(tmp_path: Path, build: Any, inputs: Any = None, states: Any = None) -> Program:
    inputs = inputs or {"row": ("float16", (1, 1, 3)), "slot": ("int32", (3,)), "end": ("int32", (3,))}
    return Program(write_package(tmp_path / "states.mlpackage", build, inputs, states or {"cache": CACHE}))


def write_row(cache: Any, row: Any, slot: Any, end: Any) -> Any:
    return mb.slice_update(x=cache, update=row, begin=slot, end=end)


def call_inputs(slot: int, value: float = 1.0) -> dict[str, torch.Tensor]:
    return {
        "row": torch.full((1, 1, 3), value),
        "slot": torch.tensor([0, slot, 0]),
        "end": torch.tensor([1, slot + 1, 3]),
    }


def overwriting(function: Any) -> int:
    return len(function._prepared.liveness.overwriting)


def test_a_write_whose_old_value_is_dead_happens_in_place(tmp_path: Path) -> None:
    def build(row: Any, slot: Any, end: Any, cache: Any) -> Any:
        new = write_row(mb.read_state(input=cache), row, slot, end)
        return mb.reduce_sum(x=mb.coreml_update_state(state=cache, value=new), axes=[1])

    opened = program(tmp_path, build)
    function, state = opened.function(), opened.make_state()
    memory = state["cache"].data_ptr()
    for slot in range(4):
        output = next(iter(function(call_inputs(slot, slot + 1.0), state).values()))
    assert overwriting(function) == 1
    assert state["cache"].data_ptr() == memory
    assert state["cache"][0, :, 0].tolist() == [1, 2, 3, 4]
    assert output[0].tolist() == [10, 10, 10]


def test_a_later_read_of_the_old_value_still_sees_it(tmp_path: Path) -> None:
    def build(row: Any, slot: Any, end: Any, cache: Any) -> Any:
        old = mb.read_state(input=cache)
        new = mb.coreml_update_state(state=cache, value=write_row(old, row, slot, end))
        return mb.sub(x=new, y=old)

    opened = program(tmp_path, build)
    function, state = opened.function(), opened.make_state()
    for slot in range(2):
        difference = next(iter(function(call_inputs(slot), state).values()))
        assert difference.sum() == 3
        assert difference[0, slot].tolist() == [1, 1, 1]
    assert overwriting(function) == 0


@pytest.mark.parametrize("view", ["reshape", "transpose", "slice_by_index", "split"])
def test_a_live_view_of_the_old_value_forbids_the_write_in_place(tmp_path: Path, view: str) -> None:
    def build(row: Any, slot: Any, end: Any, cache: Any) -> Any:
        old = mb.read_state(input=cache)
        seen = {
            "reshape": lambda: mb.reshape(x=old, shape=[8, 3]),
            "transpose": lambda: mb.transpose(x=old, perm=[2, 1, 0]),
            "slice_by_index": lambda: mb.slice_by_index(x=old, begin=[0, 0, 0], end=[1, 4, 3]),
            "split": lambda: mb.split(x=old, num_splits=2, axis=0)[0],
        }[view]()
        new = mb.coreml_update_state(state=cache, value=write_row(old, row, slot, end))
        return [mb.reduce_sum(x=seen, keep_dims=False), mb.reduce_sum(x=new, keep_dims=False)]

    opened = program(tmp_path, build)
    function, state = opened.function(), opened.make_state()
    function(call_inputs(0), state)
    before, after = function(call_inputs(1), state).values()
    assert (before, after) == (3, 6)
    assert overwriting(function) == 0


def test_an_update_that_is_part_of_the_state_itself_is_copied_first(tmp_path: Path) -> None:
    def build(cache: Any) -> Any:
        old = mb.read_state(input=cache)
        tail = mb.slice_by_index(x=old, begin=[0, 1, 0], end=[2, 4, 3])
        new = mb.slice_update(x=old, update=tail, begin=[0, 0, 0], end=[2, 3, 3])
        return mb.reduce_sum(x=mb.coreml_update_state(state=cache, value=new), axes=[0])

    opened = program(tmp_path, lambda cache, x: build(cache), {"x": ("int32", (1,))})
    function, state = opened.function(), opened.make_state()
    state["cache"] += torch.arange(4.0)[:, None]
    function({"x": torch.zeros(1, dtype=torch.int32)}, state)
    assert state["cache"][0, :, 0].tolist() == [1, 2, 3, 3]


def test_a_state_that_is_read_again_before_it_is_written_stays_as_it_was(tmp_path: Path) -> None:
    def build(row: Any, slot: Any, end: Any, cache: Any) -> Any:
        changed = write_row(mb.read_state(input=cache), row, slot, end)
        total = mb.reduce_sum(x=changed, keep_dims=False)
        again = mb.read_state(input=cache)
        mb.coreml_update_state(state=cache, value=mb.add(x=again, y=total))
        return mb.reduce_sum(x=again, keep_dims=False)

    opened = program(tmp_path, build)
    function, state = opened.function(), opened.make_state()
    assert next(iter(function(call_inputs(0), state).values())) == 0
    assert overwriting(function) == 0


def test_a_changed_value_that_is_never_written_leaves_the_state_alone(tmp_path: Path) -> None:
    def build(row: Any, slot: Any, end: Any, cache: Any) -> Any:
        return mb.reduce_sum(x=write_row(mb.read_state(input=cache), row, slot, end), keep_dims=False)

    opened = program(tmp_path, build)
    function, state = opened.function(), opened.make_state()
    for _ in range(2):
        assert next(iter(function(call_inputs(0), state).values())) == 3
    assert state["cache"].sum() == 0


def test_two_states_that_are_given_one_value_do_not_share_it(tmp_path: Path) -> None:
    def build(row: Any, slot: Any, end: Any, cache: Any, other: Any) -> Any:
        new = write_row(mb.read_state(input=cache), row, slot, end)
        mb.coreml_update_state(state=other, value=new)
        mb.coreml_update_state(state=cache, value=new)
        return mb.reduce_sum(x=row, keep_dims=False)

    opened = program(tmp_path, build, states={"cache": CACHE, "other": CACHE})
    function, state = opened.function(), opened.make_state()
    function(call_inputs(0), state)
    assert state["cache"].data_ptr() != state["other"].data_ptr()
    function(call_inputs(1), state)
    assert state["cache"].sum() == state["other"].sum() == 6


def test_an_input_written_to_a_state_is_not_taken_from_the_caller(tmp_path: Path) -> None:
    def build(x: Any, slot: Any, end: Any, cache: Any) -> Any:
        mb.coreml_update_state(state=cache, value=x)
        return mb.reduce_sum(x=x, keep_dims=False)

    inputs = {"x": CACHE, "slot": ("int32", (3,)), "end": ("int32", (3,))}
    opened = program(tmp_path, build, inputs)
    state, mine = opened.make_state(), torch.ones(2, 4, 3)
    opened.function()({"x": mine, "slot": [0, 0, 0], "end": [1, 1, 3]}, state)
    state["cache"].zero_()
    assert mine.sum() == 24


def test_an_output_that_shows_the_state_does_not_change_with_the_next_call(tmp_path: Path) -> None:
    def build(row: Any, slot: Any, end: Any, cache: Any) -> Any:
        new = mb.coreml_update_state(state=cache, value=write_row(mb.read_state(input=cache), row, slot, end))
        return mb.reshape(x=new, shape=[24])

    opened = program(tmp_path, build)
    function, state = opened.function(), opened.make_state()
    first = next(iter(function(call_inputs(0), state).values()))
    function(call_inputs(1), state)
    assert first.sum() == 3


def test_states_are_checked_by_name_and_shape(tmp_path: Path) -> None:
    def build(row: Any, slot: Any, end: Any, cache: Any) -> Any:
        return mb.add(x=mb.read_state(input=cache), y=row)

    opened = program(tmp_path, build)
    function = opened.function()
    assert dict(function.states) == {"cache": ("float16", (2, 4, 3))}
    with pytest.raises(EvaluationError, match=r"function main has the states cache: give it program.make_state\(\)"):
        function(call_inputs(0))
    with pytest.raises(EvaluationError, match=r"the state cache is missing, float16 \(2, 4, 3\)"):
        function(call_inputs(0), {})
    with pytest.raises(
        EvaluationError, match=r"the state cache is float16 \(2, 4, 3\), but must be float16 \(2, 4, 3\) as"
    ):
        function(call_inputs(0), {"cache": torch.zeros(2, 4, 3, dtype=torch.float16)})
