"""Builds small ML Programs with coremltools' own builder, for the tests of the evaluator."""

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import coremltools as ct
from coremltools.converters.mil.mil import Builder as mb
from coremltools.converters.mil.mil import Function, Program, types
from coremltools.proto import Model_pb2

from coreai_recipes.evaluate.blob import RECORD

TYPES = {"float16": types.fp16, "float32": types.fp32, "int32": types.int32, "bool": types.bool}
Specs = dict[str, tuple[str, tuple[int, ...]]]


def write_package(
    path: Path,
    build: Callable[..., Any],
    inputs: Specs,
    states: Specs | None = None,
    target: Any = ct.target.iOS18,
) -> Path:
    """Convert `build(**variables)`, which returns one output or a list, with no pass that could rewrite it."""
    placeholders: dict[str, Any] = {
        name: mb.placeholder(shape=shape, dtype=TYPES[kind]) for name, (kind, shape) in inputs.items()
    }
    for name, (kind, shape) in (states or {}).items():
        placeholders[name] = mb.state_tensor_placeholder(shape=shape, dtype=TYPES[kind])
    program = Program()
    with Function(placeholders, target) as function:
        outputs = build(**function.inputs)
        function.set_outputs(list(outputs) if isinstance(outputs, list | tuple) else [outputs])
    program.add_function("main", function)
    # each conversion collects garbage: nearly all of its time, were it among what all tests so far have brought
    gc.freeze()
    try:
        model = ct.convert(
            program,
            source="milinternal",
            convert_to="mlprogram",
            minimum_deployment_target=target,
            pass_pipeline=ct.PassPipeline.EMPTY,
            skip_model_load=True,
        )
    finally:
        gc.unfreeze()
    model.save(str(path))
    return path


def share_equal_blobs(path: Path) -> Path:
    """Let constants of equal content point to one blob whatever their shapes, as our linker does for a tied table."""
    file = next(path.glob("Data/**/*.mlmodel"))
    weights = next(path.glob("Data/**/weight.bin")).read_bytes()
    model = Model_pb2.Model()
    model.ParseFromString(file.read_bytes())
    first: dict[bytes, int] = {}
    for function in model.mlProgram.functions.values():
        for operation in function.block_specializations[function.opset].operations:
            # A compressed weight has its parts in place, as values of its operands.
            values = [operation.attributes["val"]] if operation.type == "const" else []
            values += [binding.value for operand in operation.inputs.values() for binding in operand.arguments]
            for blob in [value.blobFileValue for value in values if value.WhichOneof("value") == "blobFileValue"]:
                _, kind, size, start, _ = RECORD.unpack_from(weights, blob.offset)
                blob.offset = first.setdefault(bytes([kind]) + weights[start : start + size], blob.offset)
    file.write_bytes(model.SerializeToString())
    return path


def write_two_functions(path: Path, first: Path, second: Path) -> Path:
    """One package of two: `first` becomes the default function `first`, the other `second`."""
    descriptor = ct.utils.MultiFunctionDescriptor()
    descriptor.add_function(str(first), "main", "first")
    descriptor.add_function(str(second), "main", "second")
    descriptor.default_function_name = "first"
    ct.utils.save_multifunction(descriptor, str(path))
    return path
