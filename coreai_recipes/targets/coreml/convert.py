"""One fragment -> one self-contained ML Program, by coremltools."""

import contextlib
import functools
import gc
import importlib
import io
import logging
import sys
import types
import warnings
from collections import Counter
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from coreai_recipes.export.converting import trace
from coreai_recipes.export.fragments import Fragment
from coreai_recipes.targets.coreml.indices import narrow_indices
from coreai_recipes.targets.coreml.islands import CASTS, UNMARK, find_float32, register_marks
from coreai_recipes.targets.coreml.mil import inputs_of
from coreai_recipes.targets.coreml.version import DEPLOYMENT_TARGET

# A fragment holds no weights: a stored constant above this many values is a fault of ours.
LARGEST_CONSTANT = 8192
LARGEST_INTEGERS = 1 << 20  # no weight, but the positions of a long context
# Both see the rows of a traced table where `narrow_indices` knows the real ones; and no index of ours is negative.
REMOVED_PASSES = {"common::add_int16_cast", "common::guard_negative_gather_indices"}


def convert_fragment(fragment: Fragment, traced: torch.jit.ScriptModule | None = None) -> bytes:
    """The converted fragment as a serialized Core ML model, the same bytes for the same fragment; `traced` is what
    `trace` made of it."""
    traced = traced or trace(fragment)
    ct = _import_coremltools()
    numpy_type = {"int32": np.int32, "float16": np.float16}
    passes = ct.PassPipeline.DEFAULT
    passes.remove_passes(REMOVED_PASSES)
    passes.insert_pass(passes.passes.index(CASTS) + 1, UNMARK)
    with _quietly(), _sparing_the_collector(), _checking_less(), torch.no_grad():
        model = ct.convert(
            traced,
            convert_to="mlprogram",
            inputs=[
                ct.TensorType(name=name, shape=port.shape, dtype=numpy_type[port.dtype])
                for name, port in fragment.inputs.items()
            ],
            outputs=[ct.TensorType(name=name, dtype=numpy_type[port.dtype]) for name, port in fragment.outputs.items()],
            states=[
                ct.StateType(wrapped_type=ct.TensorType(shape=port.shape, dtype=np.float16), name=name)
                for name, port in fragment.states.items()
            ],
            minimum_deployment_target=getattr(ct.target, DEPLOYMENT_TARGET),
            compute_precision=_precision(fragment.float32_outputs),
            pass_pipeline=passes,
            skip_model_load=True,
        )
    model._mil_program.validate(check_essential_scope=True)
    return _inline_constants(model, fragment)


SPARED = ("transformers", "sklearn", "scipy")  # it imports them only to note that they are there
TRAINING = "coremltools.optimize.torch"  # half of its own import


def _import_coremltools() -> Any:
    """coremltools without what no conversion needs: two thirds of its import where all of that is installed."""
    if "coremltools" not in sys.modules:
        absent: dict[str, Any] = {name: None for name in SPARED if name not in sys.modules}  # "it is missing"
        absent[TRAINING] = types.ModuleType(TRAINING)
        sys.modules.update(absent)
        try:
            importlib.import_module("coremltools")
        finally:
            for name in absent:
                sys.modules.pop(name, None)
        del sys.modules["coremltools.optimize"].torch  # whoever imports it gets the real
    ct = importlib.import_module("coremltools")
    _register_operations()
    return ct


@functools.cache
def _register_operations() -> None:
    """Teach coremltools the operations of `primitives` that are none of torch's."""
    from coremltools.converters.mil import Builder, register_torch_op

    def channel_norm(context: Any, node: Any) -> None:
        x, eps = (context[name] for name in node.inputs)
        context.add(Builder.layer_norm(x=x, axes=[1], epsilon=eps.val, name=node.name))

    register_torch_op(channel_norm, torch_alias=["coreai_recipes::channel_norm"])
    register_marks()


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without the bars and warnings of a conversion, which are about this code and not about the user's model."""
    logger = logging.getLogger("coremltools")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def _checking_less() -> Iterator[None]:
    """Without what coremltools does after each of 93 passes, which takes it as long as the passes themselves.

    The program is checked once, when it is done. Which values lead to compressed weights is not looked for:
    there are none in a fragment, its weights are inputs. And it is not written out for a log that nobody reads.
    What a type is, which is asked 30,000 times a fragment, is worked out once a type: a seventh of the time.
    """
    from coremltools.converters.mil.mil import Block, Function, Program, Var
    from coremltools.converters.mil.mil.types import type_dict, type_list, type_mapping

    type_info = functools.cache(type_mapping.get_type_info)
    with (
        patch.object(Program, "validate", lambda program, check_essential_scope=False: None),
        patch.object(Block, "_propagate_nonreplaceable_vars", lambda block: None),
        patch.object(Function, "to_str", lambda *arguments, **named: ""),
        patch.object(Var, "_set_nonreplaceable_vars_upstream", lambda var: None),
        patch.object(type_mapping, "get_type_info", type_info),
        patch.object(type_list, "get_type_info", type_info),
        patch.object(type_dict, "get_type_info", type_info),
    ):
        yield


@contextlib.contextmanager
def _sparing_the_collector() -> Iterator[None]:
    """With the objects of torch and coremltools themselves out of the garbage collector's sight.

    coremltools collects garbage at every conversion, and half a million long-lived objects cost it more than its own.
    """
    gc.freeze()
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.unfreeze()
        if was_enabled:
            gc.enable()


def _precision(float32_outputs: tuple[str, ...]) -> Any:
    """float16 throughout, but for islands.

    The selector is asked about every operation, layout ones too: only "lies on the island" keeps the whole island in
    float32 and nothing else (a list of operation types left the angles' expand_dims in float16).
    """
    import coremltools as ct

    kept: dict[int, set[Any]] = {}

    def is_float16(operation: Any) -> bool:
        block = operation.enclosing_block
        if id(block) not in kept:
            kept[id(block)] = find_float32(block, float32_outputs)
        return operation not in kept[id(block)]

    return ct.transform.FP16ComputePrecision(op_selector=is_float16)


def _inline_constants(model: Any, fragment: Fragment) -> bytes:
    """Put the few constants that coremltools stored in a weights file into the program itself.

    The fragment is then one protobuf, fit for a cache; and none of its constants can be a weight.
    """
    from coremltools.libmilstoragepython import _BlobStorageReader

    from coreai_recipes.protobuf import MIL_pb2

    spec = model.get_spec()
    function = spec.mlProgram.functions["main"]
    for operation in function.block_specializations[function.opset].operations:
        if operation.type != "const" or operation.attributes["val"].WhichOneof("value") != "blobFileValue":
            continue
        value = operation.attributes["val"]
        shape = [dimension.constant.size for dimension in value.type.tensorType.dimensions]
        is_integer = value.type.tensorType.dataType in (MIL_pb2.INT32, MIL_pb2.INT16, MIL_pb2.UINT16, MIL_pb2.BOOL)
        if int(np.prod(shape)) > (LARGEST_INTEGERS if is_integer else LARGEST_CONSTANT):
            raise RuntimeError(f"{fragment.name}: constant {operation.outputs[0].name} of shape {shape} is baked in")
        reader, offset = _BlobStorageReader(f"{model.weights_dir}/weight.bin"), value.blobFileValue.offset
        immediate = value.immediateValue.tensor
        match value.type.tensorType.dataType:
            case MIL_pb2.FLOAT32:
                immediate.floats.values.extend(reader.read_float_data(offset))
            case MIL_pb2.INT32:
                immediate.ints.values.extend(reader.read_int32_data(offset))
            case MIL_pb2.FLOAT16:
                immediate.bytes.values = np.asarray(reader.read_fp16_data(offset)).tobytes()
            case dtype:
                raise RuntimeError(f"{fragment.name}: constant {operation.outputs[0].name} has dtype {dtype}")
    narrow_indices(function, {name: fragment.inputs[name].shape[0] for name in fragment.tables})
    _settle_names(function)
    return bytes(spec.SerializeToString(deterministic=True))


def _settle_names(function: Any) -> None:
    """Name each value after its operation and its turn, each constant standing before the first that uses it.

        before: const_5 = const(), ..., cast_11_dtype_0 = const(), cast_11 = cast(x, cast_11_dtype_0)
        after:  const_0 = const(), cast_0 = cast(x, const_0), ..., const_1 = const(), add_0 = add(cast_0, const_1)

    coremltools' passes walk sets of objects, so which of two equal constants stays, and which cast is made first,
    differs from one conversion to the next.
    """
    block = function.block_specializations[function.opset]
    constants = {op.outputs[0].name: op for op in block.operations if op.type == "const"}
    settled = {name: name for name in (*(port.name for port in function.inputs), *block.outputs)}
    counts: Counter[str] = Counter()
    ordered: list[Any] = []

    def settle(operation: Any) -> None:
        for _, found in inputs_of(operation):
            for argument in found.arguments:
                if argument.WhichOneof("binding") == "name":
                    if argument.name in constants:
                        settle(constants.pop(argument.name))
                    argument.name = settled[argument.name]
        for output in operation.outputs:
            if output.name not in settled:
                settled[output.name] = f"{operation.type}_{counts[operation.type]}"
                counts[operation.type] += 1
            output.name = settled[output.name]
        label = operation.attributes["name"].immediateValue.tensor.strings.values
        label[:] = [operation.outputs[0].name if operation.outputs else f"{operation.type}_{len(ordered)}"]
        ordered.append(type(operation).FromString(operation.SerializeToString()))

    for operation in block.operations:
        if operation.type != "const" or operation.outputs[0].name in block.outputs:
            constants.pop(operation.outputs[0].name if operation.outputs else "", None)
            settle(operation)
    del block.operations[:]
    block.operations.extend(ordered)
