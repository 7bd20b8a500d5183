"""Weights in a program that is linked without them: each part of a parameter is a constant with a stand-in for its
bytes, and an operation makes the weight of its parts where it is compressed."""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from hashlib import sha512
from typing import Any

import numpy as np

from coreai_recipes.aimodel.bytecode import Replacement
from coreai_recipes.aimodel.folder import blob_name
from coreai_recipes.export.streaming import Encoded
from coreai_recipes.storage.base import Part, Shape
from coreai_recipes.storage.compression import Parameters
from coreai_recipes.storage.row_blocks import RowBlock

ALIGNMENT = 16  # of blobs, as coreai-core writes them: a small file is read into memory that has no more
# of int8 with fewer axes, the runtime on Linux rounds data * scale and offset * scale to float16 before it subtracts
EXACT_AXES = 4
Encode = Callable[[str], Iterator[Encoded]]


def stand_in(parameter: str, part: Part) -> bytes:
    """64 bytes that no other part has: blobs of equal content are one, so a tied table is written once."""
    return sha512(f"{parameter}#{part.operand}".encode()).digest()


def replacements(
    parameters: Parameters, encode: Encode, wrote: Callable[[str, int], object]
) -> dict[bytes, Replacement]:
    """What comes in place of the stand-ins of `parameters`; `encode` gives the parts of one in their order, and `wrote`
    is told the bytes of each block."""
    found = {}
    for name, shape in parameters.shapes.items():
        parts = parameters.compression.storage(name, shape).parts(shape)
        stream = _Parts(name, encode, wrote)
        for number, part in enumerate(parts):
            found[stand_in(name, part)] = Replacement(part.bytes, lambda s=stream, n=number: s.part(n))  # type: ignore[misc]
    return found


class _Parts:
    """A parameter that is encoded once, while its parts are asked for one after another."""

    def __init__(self, name: str, encode: Encode, wrote: Callable[[str, int], object]) -> None:
        self._name, self._encode, self._wrote = name, encode, wrote
        self._values: Iterator[Encoded] | None = None
        self._following: Encoded | None = None

    def part(self, number: int) -> Iterator[memoryview]:
        if self._values is None:
            self._values = self._encode(self._name)
            self._following = next(self._values, None)
        if self._following is None or self._following[0] != number:
            raise RuntimeError(f"{self._name}: its parts lie in another order than they are encoded in")
        while self._following is not None and self._following[0] == number:
            block = self._following[1].reshape(-1).view(np.uint8).data
            yield block
            self._wrote(self._name, len(block))
            self._following = next(self._values, None)


class Constants:
    """The weights of one function, each made at its first use. With `open_sizes` the runtime finds no graph that takes
    weights alone, and none is made exact by one (`EXACT_AXES`)."""

    def __init__(self, parameters: Parameters, open_sizes: bool = False) -> None:
        self._parameters, self._open_sizes = parameters, open_sizes
        self._blocks = {block.name: block for block in parameters.blocks}
        self._made: dict[tuple[str, Shape], Any] = {}

    def weight(self, parameter: str, shape: Shape) -> Any:
        """The value of `parameter` in `shape`: a tied table has another one in the head, of the same bytes."""
        if (parameter, shape) not in self._made:
            self._made[parameter, shape] = self._make(parameter, shape)
        return self._made[parameter, shape]

    def _make(self, parameter: str, shape: Shape) -> Any:
        from coreai._compiler.dialects import coreai

        block = self._blocks.get(parameter)
        if block is not None:
            whole = (self._parameters.shapes[block.parameter][0], *shape[1:])
            return _rows(self.weight(block.parameter, whole), block, whole)
        storage = self._parameters.compression.storage(parameter, self._parameters.shapes[parameter])
        parts = storage.parts(shape)
        made = {part.operand: _constant(parameter, part) for part in parts}
        match storage.operation:
            case None:
                return made[parts[0].operand]
            case "constexpr_lut_to_dense":
                return coreai.lut_to_dense(made["indices"], made["lut"], np.array(0, np.int16))
            case "constexpr_blockwise_shift_scale":
                data, scale = (next(part for part in parts if part.operand == name) for name in ("data", "scale"))
                none = np.zeros(scale.shape, np.float16)
                offset = made.get("offset")
                if offset is None:
                    offset = _zeros(data.dtype, scale.shape)
                elif data.dtype == "uint8" and len(shape) < EXACT_AXES and not self._open_sizes:
                    ones = (1,) * (EXACT_AXES - len(shape))
                    return _reshaped(self.weight(parameter, (*shape, *ones)), shape)
                return coreai.blockwise_shift_scale(made["data"], made["scale"], offset, none)
            case operation:
                raise TypeError(f"{parameter}: nothing is known of {operation} in Core AI")


def _rows(weight: Any, block: RowBlock, whole: Shape) -> Any:
    """Rows of a weight."""
    from coreai._compiler.dialects import coreai

    def cut(given: Any) -> Any:
        rest = len(whole) - 1
        return coreai.slice_(given, [block.first] + [0] * rest, [block.end, *whole[1:]], [1] * len(whole))

    name = f"rows_{block.first}_{block.end}_of_{'x'.join(map(str, whole))}"
    return _by_graph(name, cut, "rows", weight, (block.end - block.first, *whole[1:]))


def _reshaped(weight: Any, shape: Shape) -> Any:
    from coreai._compiler.dialects import coreai

    def reshape(given: Any) -> Any:
        return coreai.reshape(given, np.array(shape, np.uint32))

    return _by_graph(f"reshaped_{'x'.join(map(str, shape))}", reshape, "reshaped", weight, shape)


def _by_graph(name: str, change: Callable[[Any], Any], result: str, weight: Any, shape: Shape) -> Any:
    """What `change` makes of a weight, of `shape`, by a graph of its own: of a constant, which it is in the dense twin,
    the compiler would change the stand-in."""
    from coreai._compiler.dialects import coreai
    from coreai._compiler.ir import InsertionPoint, Location, RankedTensorType
    from coreai.authoring.graph_builder import invoke

    body, kind = InsertionPoint.current.block.owner.parent.regions[0].blocks[0], weight.type
    if not any(each.attributes["sym_name"].value == name for each in body.operations if "sym_name" in each.attributes):
        with InsertionPoint.at_block_begin(body), Location.unknown():
            graph = coreai.GraphOp(
                name=name, input_types=[kind], result_types=[], input_names=["weight"], private=True, no_inline=True
            )
            with graph.block:
                changed = change(graph.arguments[0])
            graph.set_outputs_spec_from_dict(OrderedDict({result: changed}))
    return invoke([RankedTensorType.get(list(shape), RankedTensorType(kind).element_type)], name, [weight])[0]


def _constant(parameter: str, part: Part) -> Any:
    return _blob(np.frombuffer(stand_in(parameter, part), np.uint8).copy(), blob_name(parameter, part.operand), part)


def _zeros(dtype: str, shape: Shape) -> Any:
    part = Part("zeros", dtype, shape)
    return _blob(np.zeros(part.bytes, np.uint8), f"zeros_{dtype}_{'x'.join(map(str, shape))}", part)


def _blob(data: Any, name: str, part: Part) -> Any:
    from coreai._compiler.dialects import coreai
    from coreai._compiler.ir import DenseResourceElementsAttr, RankedTensorType

    kind = RankedTensorType.get(list(part.shape), element(part.dtype))
    value = DenseResourceElementsAttr.get_from_buffer(data, name, kind, alignment=ALIGNMENT)
    return coreai.ConstantOp(value=value).result


def element(dtype: str) -> Any:
    """The type of a tensor's elements."""
    from coreai._compiler.ir import F16Type, F32Type, IntegerType

    match dtype:
        case "float16":
            return F16Type.get()
        case "float32":
            return F32Type.get()
    signed = dtype.removeprefix("u")
    bits = int(signed.removeprefix("int"))
    return IntegerType.get_signed(bits) if signed == dtype else IntegerType.get_unsigned(bits)
