"""What of a fragment stays float32 when coremltools makes the rest float16.

An island lies between two marks, operations of no standard that no pass knows and none moves anything across; behind
the pass that casts to float16 they are taken out. Angles are an island without marks: they end in an output.

    before: x32 -> mark_wide -> mul, reduce_mean, rsqrt, mul -> mark_narrow -> conv
    after:  x16 -> cast -> mul, reduce_mean, rsqrt, mul (float32) -> cast -> conv
"""

import functools
from typing import Any

CASTS = "common::add_fp16_cast"
WIDE, NARROW, HALF = (
    "torch_widened",
    "torch_narrowed",
    "torch_halved",
)  # operations of coremltools' torch dialect are named so
UNMARK = "coreai_recipes::take_out_marks"


@functools.cache
def register_marks() -> None:
    """Teach coremltools the two marks, where `primitives.float32` puts them, and the pass that takes them out."""
    from coremltools.converters.mil import Builder, register_torch_op
    from coremltools.converters.mil.mil import Operation, types
    from coremltools.converters.mil.mil.input_type import InputSpec, TensorInputType
    from coremltools.converters.mil.mil.ops.registry import SSAOpRegistry
    from coremltools.converters.mil.mil.passes.graph_pass import AbstractGraphPass
    from coremltools.converters.mil.mil.passes.helper import block_context_manager
    from coremltools.converters.mil.mil.passes.pass_registry import register_pass

    def mark(name: str) -> Any:
        def type_inference(self: Any) -> Any:
            return self.x.sym_type

        spec = InputSpec(x=TensorInputType(type_domain="T"))
        domains = {"T": (types.fp16, types.fp32)}
        body = {"input_spec": spec, "type_domains": domains, "type_inference": type_inference}
        return SSAOpRegistry.register_op(namespace="torch")(type(name, (Operation,), body))

    for name in (WIDE, NARROW, HALF):
        mark(name)

    def widened(context: Any, node: Any) -> None:
        context.add(Builder.torch_widened(x=context[node.inputs[0]], name=node.name))

    def narrowed(context: Any, node: Any) -> None:
        context.add(Builder.torch_narrowed(x=context[node.inputs[0]], name=node.name))

    def halved(context: Any, node: Any) -> None:
        context.add(Builder.torch_halved(x=context[node.inputs[0]], name=node.name))

    register_torch_op(halved, torch_alias=["coreai_recipes::halved"])
    register_torch_op(widened, torch_alias=["coreai_recipes::widened"])
    register_torch_op(narrowed, torch_alias=["coreai_recipes::narrowed"])

    def take_out(block: Any) -> None:
        for operation in list(block.operations):
            if operation.op_type in (WIDE, NARROW, HALF):
                mark = operation.outputs[0]
                block.replace_uses_of_var_after_op(
                    anchor_op=operation, old_var=mark, new_var=operation.x, force_replace=True
                )
                block.remove_ops([operation])

    class take_out_marks(AbstractGraphPass):  # type: ignore[misc]
        def apply(self, program: Any) -> None:
            for function in program.functions.values():
                block_context_manager(take_out)(function)

    register_pass(namespace=UNMARK.partition("::")[0])(take_out_marks)


def find_float32(block: Any, outputs: tuple[str, ...]) -> set[Any]:
    """The operations that stay float32: what the named outputs of `block` are computed from, and what lies between
    marks."""
    waiting = [output for output in block.outputs if output.name in outputs]
    if len(waiting) != len(outputs):
        raise RuntimeError(f"outputs {outputs} are not among {[output.name for output in block.outputs]}")
    waiting += [operation.outputs[0] for operation in block.operations if operation.op_type == NARROW]
    found: set[Any] = set()
    while waiting:
        operation = waiting.pop().op
        if operation is None or operation in found:
            continue
        found.add(operation)
        if operation.op_type == WIDE:
            continue
        for value in operation.inputs.values():
            waiting += value if isinstance(value, list | tuple) else [value]
    return found
