"""An ML Program as rules see it: operations, values with types, small constants. The protobuf is read, no weight is."""

import struct
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from math import isfinite, prod
from typing import Any

from coreai_recipes.evaluate.errors import EvaluationError
from coreai_recipes.protobuf import MIL_pb2

Shape = tuple[int, ...]

UNKNOWN = -1  # a size that only a call decides
MOST_VALUES = 65536  # of a constant in the program's own file that are looked at
MOST_OPERATIONS = 2_000_000

BITS = {
    "float16": 16, "bfloat16": 16, "float32": 32, "float64": 64, "bool": 8,
    "int2": 2, "int4": 4, "int8": 8, "int16": 16, "int32": 32, "int64": 64, "uint1": 1, "uint2": 2, "uint3": 3,
    "uint4": 4, "uint6": 6, "uint8": 8, "uint16": 16, "uint32": 32, "uint64": 64,
}  # fmt: skip
_TYPES = {number: name.lower() for name, number in MIL_pb2.DataType.items()}
_FORMATS = {
    "float16": "e",
    "bool": "?",
    "int8": "b",
    "uint8": "B",
    "int16": "h",
    "uint16": "H",
    "int32": "i",
    "uint32": "I",
}


@dataclass(eq=False, slots=True)
class Value:
    """A value by its name. `constant` when it is known before the program runs; `producer` gives any other."""

    name: str
    dtype: str
    shape: Shape
    producer: "Operation | None" = None
    constant: bool = False
    # of a constant that does not lie among the weights: its numbers, or the protobuf's own value
    literal: Any = None
    blob: tuple[str, int] | None = None  # of one that does: file, or blob of an asset, and offset
    flexible: bool = False
    is_state: bool = False

    @property
    def count(self) -> int:
        return prod(self.shape)

    @property
    def bytes(self) -> int:
        return -(-self.count * BITS.get(self.dtype, 32) // 8)

    @property
    def padded_bytes(self) -> int:
        """With every row of the last axis brought to whole lanes of 64 bytes, as the engine keeps it."""
        if not self.shape:
            return 64
        row = -(-self.shape[-1] * BITS.get(self.dtype, 32) // 8)
        return prod(self.shape[:-1]) * -(-row // 64) * 64

    def numbers(self) -> list[float] | None:
        """A constant's values, None where they lie among the weights, are many, or no numbers."""
        if isinstance(self.literal, tuple):
            return list(self.literal)
        return _numbers(self.literal, self.dtype) if self.literal is not None else None

    def number(self) -> float | None:
        """The only value of a constant."""
        found = self.numbers()
        return found[0] if found and len(found) == 1 else None

    def text(self) -> str | None:
        """The only word of a constant of words."""
        if self.literal is None or isinstance(self.literal, tuple) or self.dtype != "string":
            return None
        words = self.literal.immediateValue.tensor.strings.values
        return str(words[0]) if len(words) == 1 else None


@dataclass(eq=False, slots=True)
class Operation:
    """One operation; `index` is its place in running order, `depth` how many blocks of control flow it stands in."""

    index: int
    type: str
    operands: dict[str, tuple[Value, ...]]
    results: tuple[Value, ...]
    depth: int = 0

    @property
    def name(self) -> str:
        return self.results[0].name if self.results else self.type

    def operand(self, *keys: str) -> Value | None:
        """The first value that is bound to one of the keys."""
        for key in keys:
            bound = self.operands.get(key)
            if bound:
                return bound[0]
        return None

    def values(self) -> Iterator[Value]:
        for bound in self.operands.values():
            yield from bound

    def number(self, key: str, default: float) -> float:
        """A constant parameter, `default` where none is given."""
        value = self.operand(key)
        found = None if value is None else value.number()
        return default if found is None else found

    def integer(self, key: str, default: int) -> int:
        found = self.number(key, default)
        return int(found) if isfinite(found) else default


@dataclass(eq=False)
class Function:
    """One function: its signature and its operations in running order, constants aside."""

    name: str
    inputs: list[Value] = field(default_factory=list)
    states: list[Value] = field(default_factory=list)
    outputs: list[Value] = field(default_factory=list)
    operations: list[Operation] = field(default_factory=list)
    constants: list[Value] = field(default_factory=list)
    peek: Callable[[Value], list[float] | None] = lambda value: None  # the first numbers of a constant in a blob

    @cached_property
    def users(self) -> dict[Value, list[Operation]]:
        """The operations that read a value."""
        found: dict[Value, list[Operation]] = defaultdict(list)
        for operation in self.operations:
            for value in operation.values():
                if not found[value] or found[value][-1] is not operation:
                    found[value].append(operation)
        return dict(found)

    @cached_property
    def by_type(self) -> dict[str, list[Operation]]:
        found: dict[str, list[Operation]] = defaultdict(list)
        for operation in self.operations:
            found[operation.type].append(operation)
        return dict(found)


@dataclass(eq=False)
class Program:
    """The functions of one package, and who wrote it. `is_outline`: made from a recipe's sizes, with no operations but
    those that sizes alone decide."""

    functions: list[Function]
    writer: str = ""
    is_outline: bool = False


def read_program(model: Any) -> Program:
    """The program of a Core ML model's protobuf. Raises EvaluationError for one that contradicts itself."""
    functions = [_Reading(name, function, model).read() for name, function in sorted(model.mlProgram.functions.items())]
    default = model.description.defaultFunctionName
    functions.sort(key=lambda function: (function.name not in (default, "main"), function.name))
    writer = model.description.metadata.userDefined.get("com.github.apple.coremltools.version", "")
    return Program(functions, str(writer))


class _Reading:
    """One function while it is read."""

    def __init__(self, name: str, source: Any, model: Any) -> None:
        self.source, self.function = source, Function(name)
        self.values: dict[str, Value] = {}
        self.flexible = _flexible_inputs(model.description, name)

    def read(self) -> Function:
        function, source = self.function, self.source
        for parameter in source.inputs:
            is_state = parameter.type.WhichOneof("type") == "stateType"
            dtype, shape = _type_of(parameter.type.stateType.wrappedType if is_state else parameter.type)
            value = Value(parameter.name, dtype, shape, is_state=is_state, flexible=parameter.name in self.flexible)
            self.values[value.name] = value
            (function.states if is_state else function.inputs).append(value)
        if source.opset not in source.block_specializations:
            raise EvaluationError(f"function {function.name!r:.80} has nothing for its opset {source.opset!r:.80}")
        block = source.block_specializations[source.opset]
        self._read_block(block, 0)
        for name in block.outputs:
            if name not in self.values:
                raise EvaluationError(f"function {function.name!r:.80} gives {name!r:.80}, which nothing in it makes")
            function.outputs.append(self.values[name])
        return function

    def _read_block(self, block: Any, depth: int) -> None:
        for parameter in block.inputs:  # of a loop's body
            dtype, shape = _type_of(parameter.type)
            self.values[parameter.name] = Value(parameter.name, dtype, shape)
        for operation in block.operations:
            if operation.type == "const":
                self._read_constant(operation)
            else:
                self._read_operation(operation, depth)

    def _read_constant(self, operation: Any) -> None:
        for output in operation.outputs:
            dtype, shape = _type_of(output.type)
            value = _constant(output.name, dtype, shape, operation.attributes["val"])
            self.values[value.name] = value
            self.function.constants.append(value)

    def _read_operation(self, operation: Any, depth: int) -> None:
        function = self.function
        if len(function.operations) > MOST_OPERATIONS:
            raise EvaluationError(f"function {function.name!r:.80} has more than {MOST_OPERATIONS:,} operations")
        operands: dict[str, tuple[Value, ...]] = {}
        for key, argument in operation.inputs.items():
            operands[key] = tuple([self._bound(binding, operation) for binding in argument.arguments])
        for key, attribute in operation.attributes.items():
            if key not in ("name", "val") and key not in operands:
                operands[key] = (_constant(key, *_type_of(attribute.type), attribute),)
        results = tuple([Value(output.name, *_type_of(output.type)) for output in operation.outputs])
        found = Operation(len(function.operations), operation.type, operands, results, depth)
        is_constant = operation.type.startswith("constexpr_") or (
            bool(operands) and not operation.blocks and all(v.constant for bound in operands.values() for v in bound)
        )
        for value in results:
            value.producer, value.constant = found, is_constant
            self.values[value.name] = value
        function.operations.append(found)
        for block in operation.blocks:
            self._read_block(block, depth + 1)

    def _bound(self, binding: Any, operation: Any) -> Value:
        if binding.WhichOneof("binding") == "value":
            return _constant("", *_type_of(binding.value.type), binding.value)
        value = self.values.get(binding.name)
        if value is None:
            raise EvaluationError(
                f"function {self.function.name!r:.80}: {operation.type!r:.80} reads {binding.name!r:.80}, which "
                "no operation before it gives"
            )
        return value


def _flexible_inputs(description: Any, function: str) -> set[str]:
    """Inputs that a caller may hand in with other sizes than the default ones."""
    described = next((found.input for found in description.functions if found.name == function), description.input)
    kinds = {port.name: port.type.multiArrayType for port in described}
    return {name for name, kind in kinds.items() if kind.WhichOneof("ShapeFlexibility") is not None}


def _type_of(kind: Any) -> tuple[str, Shape]:
    tensor = kind.tensorType if kind.WhichOneof("type") == "tensorType" else None
    if tensor is None:
        return str(kind.WhichOneof("type") or "nothing").removesuffix("Type"), ()
    shape = tuple([d.constant.size if d.HasField("constant") else UNKNOWN for d in tensor.dimensions])
    return _TYPES.get(tensor.dataType, "unknown"), shape


def _constant(name: str, dtype: str, shape: Shape, value: Any) -> Value:
    if value.WhichOneof("value") == "blobFileValue":
        return Value(name, dtype, shape, None, True, None, (value.blobFileValue.fileName, value.blobFileValue.offset))
    return Value(name, dtype, shape, None, True, value)


def _numbers(value: Any, dtype: str) -> list[float] | None:
    tensor = value.immediateValue.tensor
    kind = tensor.WhichOneof("value")
    if kind == "bytes":
        raw, code = tensor.bytes.values, _FORMATS.get(dtype)
        if code is None or len(raw) % struct.calcsize(code) or len(raw) > 4 * MOST_VALUES:
            return None
        return [float(number) for number in struct.unpack(f"<{len(raw) // struct.calcsize(code)}{code}", raw)]
    if kind is None or kind == "strings":
        return None
    values = getattr(tensor, kind).values
    return None if len(values) > MOST_VALUES else [float(number) for number in values]
