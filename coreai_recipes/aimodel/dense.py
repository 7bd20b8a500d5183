"""What an asset's weights are made of, and its dense twin: the same program with each compressed weight's numbers in
place of the operation that makes it.

    before: %1 = coreai.constant dense_resource<w_indices> : tensor<8x8xui4>
            %2 = coreai.constant dense_resource<w_lut> : tensor<1x1x16x1xf16>
            %4 = coreai.lut_to_dense %1, %2, %3 : ... -> tensor<8x8xf16>
    after:  %4 = coreai.constant dense_resource<w> : tensor<8x8xf16>
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

from coreai_recipes.aimodel.bytecode import Bytes, Replacement
from coreai_recipes.aimodel.rewriting import rewrite, text_of

CONSTANT = re.compile(r" *%(\w+) = coreai\.constant (.*) : tensor<((?:\d+x)*)([a-z]+)(\d+)>$")
RESOURCE = re.compile(r"dense_resource<\"?(\w+)\"?>$")
MADE = re.compile(r"( *)%(\w+) = coreai\.(lut_to_dense|blockwise_shift_scale) (.*?) : .* -> tensor<([\dx]*)xf16>$")
NAME = re.compile(r"%(\w+)")
GRAPH = re.compile(r" *coreai\.graph ")
ZERO = "dense<0.000000e+00>"
FLOAT16_BYTES = 2
# what an operation makes a weight of, in the order of its operands; the last is an axis, or zeros
OPERANDS = {"lut_to_dense": ("indices", "lut"), "blockwise_shift_scale": ("data", "scale", "offset")}
TYPES = {"ui": "uint", "si": "int", "f": "float"}


@dataclass(frozen=True)
class Part:
    """A constant of the program: the blob that holds it, its type and shape."""

    blob: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Weight:
    """A weight of `shape`, and the operation that makes it of its parts, by the names of its operands; None where the
    part with the empty name is the weight itself."""

    name: str
    shape: tuple[int, ...]
    operation: str | None
    parts: dict[str, Part]


Decompress = Callable[[Weight], Iterable[Bytes]]


def write_dense(asset: Path, dense: Path, decompress: Decompress) -> None:
    """Write the dense twin of the asset as the folder `dense`, which must not exist. `decompress` gives the float16
    numbers of a weight, in blocks."""
    added: dict[str, Replacement] = {}

    def fill(text: str) -> str:
        lines, made = densified(text)
        for weight in made:
            size = FLOAT16_BYTES * prod(weight.shape)
            added[weight.name] = Replacement(size, lambda weight=weight: decompress(weight))  # type: ignore[misc]
        return "\n".join(lines)

    rewrite(asset, dense, fill, added=added)


def is_compressed(asset: Path) -> bool:
    """Whether an operation makes any of the asset's weights."""
    return any(MADE.match(line) for line in text_of(asset).splitlines())


def weights_of(asset: Path) -> list[Weight]:
    """Every weight that the functions of an asset have, once."""
    text = text_of(asset)
    made = densified(text)[1]
    parts = {part.blob for weight in made for part in weight.parts.values()}
    constants = (_part(found) for line in text.splitlines() if (found := CONSTANT.match(line)))
    plain = {part.blob: part for part in constants if part is not None and part.blob not in parts}
    return [*made, *(Weight(name, part.shape, None, {"": part}) for name, part in plain.items())]


def densified(text: str) -> tuple[list[str], list[Weight]]:
    """The lines of a program's text without compressed weights, and the weights that were."""
    lines, made = list[str](), dict[str, Weight]()
    graph: list[str] = []
    for line in [*text.splitlines(), ""]:
        if not line or GRAPH.match(line):
            lines += _densify(graph, made)
            graph = []
        graph.append(line)
    return lines, list(made.values())


def _densify(graph: list[str], made: dict[str, Weight]) -> Iterator[str]:
    """The lines of one graph; `made` gets the weights. Constants that nothing else reads go with their operation."""
    operations = {line: found for line in graph if (found := MADE.match(line))}
    constants = {found[1]: found for line in graph if (found := CONSTANT.match(line))}
    parts = {name for found in operations.values() for name in NAME.findall(found[4])}
    parts -= {
        name for line in graph if line not in operations for name in NAME.findall(line.partition(" = ")[2] or line)
    }
    for line in graph:
        found, constant = operations.get(line), CONSTANT.match(line)
        if found is not None:
            weight = _weight(found, constants)
            held = made.setdefault(weight.name, weight)
            if [part.blob for part in held.parts.values()] != [part.blob for part in weight.parts.values()]:
                raise ValueError(f"two weights are called {weight.name}")
            kind = f"tensor<{found[5]}xf16>"
            yield f"{found[1]}%{found[2]} = coreai.constant dense_resource<{weight.name}> : {kind}"
        elif constant is None or constant[1] not in parts:
            yield line


def _weight(made: re.Match[str], constants: Mapping[str, re.Match[str]]) -> Weight:
    """What an operation makes of the constants of its graph."""
    operation, operands = made[3], OPERANDS[made[3]]
    *given, last = (constants[name] for name in NAME.findall(made[4]))
    if operation == "blockwise_shift_scale" and last[2] != ZERO:
        raise ValueError(f"{made[0].strip():.80}: something is added behind the scale")
    parts = {name: part for name, found in zip(operands, given, strict=True) if (part := _part(found)) is not None}
    if parts.keys() != set(operands):
        raise ValueError(f"{made[0].strip():.80}: is not made of stored weights")
    name = parts[operands[0]].blob.removesuffix(f"_{operands[0]}")
    return Weight(name, _shape(made[5]), operation, parts)


def _part(found: re.Match[str]) -> Part | None:
    """A constant that lies in a blob, None for one that is written in the text."""
    blob = RESOURCE.match(found[2])
    if blob is None:
        return None
    return Part(blob[1], TYPES[found[4]] + found[5], _shape(found[3].rstrip("x")))


def _shape(words: str) -> tuple[int, ...]:
    return tuple(map(int, words.split("x"))) if words else ()
