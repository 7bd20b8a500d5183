"""Every registered operation against torch. The registry is the list: an operation without a case is a failure."""

from typing import Any

import pytest
import torch
from mil_programs import write_package
from operation_cases import CASES, Case
from torch import Tensor

from coreai_recipes.evaluate import Function, Program
from coreai_recipes.evaluate.operations import unary as _filled  # noqa: F401
from coreai_recipes.evaluate.opset import OPERATIONS

KINDS = {torch.float32: "float32", torch.int32: "int32", torch.bool: "bool"}
IDS = [case.name.replace(" ", "-") for case in CASES]


def names_of(case: Case) -> list[str]:
    number = CASES.index(case)
    return [f"case_{number}_input_{index}" for index in range(len(case.inputs))]


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Function, dict[str, Tensor], dict[str, list[str]]]:
    """All cases as one program, because a conversion costs more than all of their runs."""
    inputs: dict[str, Tensor] = {}
    for case in CASES:
        inputs.update(zip(names_of(case), case.inputs, strict=True))
    outputs: dict[str, list[str]] = {}

    def build(**variables: Any) -> list[Any]:
        built = []
        for case in CASES:
            results = case.build(*(variables[name] for name in names_of(case)))
            results = list(results) if isinstance(results, list | tuple) else [results]
            outputs[case.name] = [result.name for result in results]
            built += results
        return built

    # A program has no bool inputs: those travel as int32.
    specs = {
        name: ("int32" if value.dtype == torch.bool else KINDS[value.dtype], tuple(value.shape))
        for name, value in inputs.items()
    }

    def build_with_bools(**variables: Any) -> list[Any]:
        from coremltools.converters.mil.mil import Builder as mb

        for name, value in inputs.items():
            if value.dtype == torch.bool:
                variables[name] = mb.cast(x=variables[name], dtype="bool")
        return build(**variables)

    path = write_package(tmp_path_factory.mktemp("operations") / "all.mlpackage", build_with_bools, specs)
    function = Program(path).function()
    results = function({name: value.int() if value.dtype == torch.bool else value for name, value in inputs.items()})
    return function, results, outputs


def test_each_registered_operation_has_a_case() -> None:
    assert sorted(set(OPERATIONS) - {case.operation for case in CASES}) == []


def test_no_two_cases_have_the_same_name() -> None:
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_the_operation_is_what_torch_says(case: Case, evaluated: Any) -> None:
    function, results, outputs = evaluated
    assert case.operation in function.operation_counts()
    expected = case.expected(*case.inputs)
    expected = expected if isinstance(expected, list) else [expected]
    ours = [results[name] for name in outputs[case.name]]
    assert len(ours) == len(expected)
    for mine, theirs in zip(ours, expected, strict=True):
        # coremltools casts a bool output to float32.
        theirs = theirs.float() if theirs.dtype == torch.bool else theirs
        assert mine.dtype == theirs.dtype
        torch.testing.assert_close(mine, theirs, rtol=2e-5, atol=2e-6)


def test_a_result_that_shares_memory_with_an_operand_is_registered_as_a_view(evaluated: Any) -> None:
    """In-place writes rely on it: an unregistered view would let a later write change an older value."""
    function, _, _ = evaluated
    prepared = function._prepared
    wrong = []
    values = list(prepared.template)
    for case in CASES:
        for name, value in zip(names_of(case), case.inputs, strict=True):
            values[prepared.slots[name]] = value.int() if value.dtype == torch.bool else value
    for node, step in zip(function._graph.nodes, prepared.steps, strict=True):
        operands = [values[slot] for slot in step.operands]
        value = step.run(*operands)
        parts = [value] if step.results is None else list(value)
        for slot, part in zip(step.results or (step.result,), parts, strict=True):
            values[slot] = part
        storages = {operand.untyped_storage().data_ptr() for operand in operands if operand.numel()}
        shares = any(part.untyped_storage().data_ptr() in storages for part in parts if part.numel())
        if shares and not OPERATIONS[node.type].views:
            wrong.append(node.type)
    assert wrong == []
