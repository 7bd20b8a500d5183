"""Core AI's operations under Core ML's names: a name that coremltools has not would be one that no rule asks for."""

import pytest
from coremltools.converters.mil.mil.ops.registry import SSAOpRegistry

from coreai_recipes.lint.program import Value
from coreai_recipes.lint.vocabulary import OPERATIONS, PREFIXES, REST, WEIGHTS, named

# operands that Core ML's operation has not, or has in another form: no rule may ask for them
OWN = {"offset_behind", "output_pad", "strides", "shape", "axes", "zero_point"}
RENAMED = {kind: found for kind, found in {**OPERATIONS, **WEIGHTS}.items() if found[0] != kind}


def inputs_of(name: str) -> set[str]:
    versions = SSAOpRegistry.core_ops[name] if name in SSAOpRegistry.core_ops else SSAOpRegistry.custom_ops[name]
    return {port for version in versions.values() for port in version.input_spec.input_types}


@pytest.mark.parametrize("kind", RENAMED)
def test_a_name_is_one_of_core_mls_operations_and_so_are_its_operands(kind: str) -> None:
    name, keys = RENAMED[kind]
    if name != "write_state":  # which a saved program has, and no builder
        assert {key.removeprefix(REST) for key in keys} - OWN <= inputs_of(name)


def value(dtype: str, *shape: int, constant: bool = False) -> Value:
    return Value("v", dtype, shape, constant=constant)


def test_what_computes_something_else_keeps_its_own_name() -> None:
    integers, truths = (value(dtype, 4) for dtype in ("int32", "bool"))
    table, rows, points = value("float16", 64, 32), value("int32", 8, 1), value("int32", 8, 2)
    stored, given = (value("uint4", 64, 32, constant=constant) for constant in (True, False))
    cases = {
        ("bitwise_and", truths, truths): ("logical_and", ["x", "y"]),
        ("bitwise_and", integers, integers): ("bitwise_and", ["operands"]),
        ("gather_nd", table, rows): ("gather", ["x", "indices"]),
        ("gather_nd", table, points): ("gather_nd", ["x", "indices"]),
        ("dequantize", stored, stored): ("constexpr_affine_dequantize", ["quantized_data", "scale"]),
        ("dequantize", given, stored): ("dequantize", ["input", "scale"]),
        ("sort", integers): ("sort", ["operands"]),
    }
    for (kind, *operands), (name, keys) in cases.items():
        for prefix in PREFIXES:
            found, bound = named(f"{prefix}{kind}", operands)
            assert (found, list(bound)) == (name, keys)


def test_the_last_key_takes_the_operands_that_are_left() -> None:
    axis, *parts = (value("float16", size) for size in (1, 2, 3))
    assert named("coreai.concat", [axis, *parts])[1] == {"axis": (axis,), "values": tuple(parts)}
