"""An asset's graphs as plain data: operations, types, small constants, and where large ones lie. No weight is read.

coreai-core parses the program with stand-ins in place of its weights. It may abort the process over a broken file:
whoever has not made the file reads it in a process of its own.
"""

import mmap
import os
import re
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

from coreai_recipes.aimodel.bytecode import Bytecode, BytecodeError, splice
from coreai_recipes.aimodel.folder import PROGRAM
from coreai_recipes.aimodel.rewriting import load, shorten

MOST_NUMBERS = 65536  # of a constant in the program's text
OPEN = -1  # a size that only a call decides
WHOLE_BYTES = re.compile(r"f16|f32|f64|[su]?i(8|16|32|64)$")  # numpy's own; the bindings abort over any other


def read_graphs(asset: Path) -> dict[str, Any]:
    """`graphs`, in the order of the file, and `blobs`: where each begins in it and its bytes, by name.

    A graph has its `name`, whether it is `private`, its `arguments` and the `results` that it gives by their names, and
    its `operations`. A value is `[name, type, shape]`, the name as MLIR prints it. Raises BytecodeError for a file that
    is no bytecode, and what coreai-core raises for one that it cannot parse.
    """
    with (asset / PROGRAM).open("rb") as file:
        if not file.seek(0, os.SEEK_END):
            raise BytecodeError("is empty")
        # closed when nothing looks at it any more: an error may still hold a part
        whole = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    blobs = Bytecode(whole).places
    short = b"".join(splice(whole, shorten, is_renamed=False))
    module = load(short)
    return {"blobs": blobs, "graphs": [_graph(each) for each in module.body.operations if _is_graph(each)]}


def _is_graph(operation: Any) -> bool:
    return bool(operation.operation.name == "coreai.graph")


def _graph(graph: Any) -> dict[str, Any]:
    from coreai._compiler.ir import AsmState

    names = AsmState(graph.operation)
    block = graph.operation.regions[0].blocks[0]
    arguments = [_value(argument, names) for argument in block.arguments]
    names_given = _names(graph, "arg_attrs") or [""] * len(arguments)
    return {
        "name": graph.attributes["sym_name"].value,
        "private": "priv" in graph.attributes,
        "arguments": [[*value, name] for value, name in zip(arguments, names_given, strict=True)],
        "results": _names(graph, "res_attrs"),
        "operations": list(_operations(block, names)),
    }


def _names(graph: Any, attribute: str) -> list[str]:
    """What a caller calls each argument or result, an empty word where the program does not say."""
    if attribute not in graph.attributes:
        return []
    held = graph.attributes[attribute]
    return [each["coreai.name"].value if "coreai.name" in each else "" for each in held]


def _operations(block: Any, names: Any) -> Iterator[dict[str, Any]]:
    for view in block.operations:
        operation = view.operation
        found: dict[str, Any] = {
            "type": operation.name,
            "operands": [operand.get_name(names) for operand in operation.operands],
            "results": [_value(result, names) for result in operation.results],
        }
        if operation.name == "coreai.constant":
            found |= _constant(operation)
        elif operation.name == "coreai.invoke":
            found["callee"] = str(operation.attributes["callee"]).partition("@")[2].partition(">")[0].strip('"')
        blocks = [block for region in operation.regions for block in region.blocks]
        if blocks:
            found["blocks"] = [
                {
                    "arguments": [_value(argument, names) for argument in each.arguments],
                    "operations": list(_operations(each, names)),
                }
                for each in blocks
            ]
        yield found


def _value(value: Any, names: Any) -> list[Any]:
    return [value.get_name(names), *_type(value.type)]


def _type(kind: Any) -> tuple[str, list[int]]:
    """The element's type and the shape; of a handle those of what it holds. Anything else is its own name."""
    from coreai._compiler.ir import RankedTensorType, Type

    words = str(kind)
    if words.startswith("!coreai.handle<"):
        element, shape = _type(Type.parse(words.removeprefix("!coreai.handle<").removesuffix(">"), kind.context))
        return f"handle {element}", shape
    if not isinstance(kind, RankedTensorType):
        return words, []
    axes = range(kind.rank)
    return str(kind.element_type), [OPEN if kind.is_dynamic_dim(axis) else kind.get_dim_size(axis) for axis in axes]


def _constant(operation: Any) -> dict[str, Any]:
    """The numbers of a constant that are not many, or the name of the blob that it lies in."""
    import numpy as np
    from coreai._compiler.ir import DenseResourceElementsAttr

    try:
        value = operation.attributes["value"]
    except TypeError:  # of complex numbers, for one
        return {}
    if DenseResourceElementsAttr.isinstance(value):
        return {"blob": str(value).removeprefix("dense_resource<").partition(">")[0].strip('"')}
    kind, count = str(value.type.element_type), prod(value.type.shape)
    if count > MOST_NUMBERS:
        return {}
    if value.is_splat:
        return {"numbers": [float(value.get_splat_value().value)] * count}
    if kind == "i1":  # eight in a byte
        return {"numbers": [float(bit) for bit in value]}
    if not WHOLE_BYTES.match(kind):
        return {}
    return {"numbers": np.array(value).astype(np.float64).ravel().tolist()}
