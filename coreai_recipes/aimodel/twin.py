"""An asset's float32 twin: the same program with float32 in place of float16, over the same weights.

Every tensor of the program is widened. A weight's bytes are the asset's, widened one by one as they are copied; what a
compressed weight is made of stays as it is to the bit, and a cast widens what is decompressed. The twin computes the
asset's own program without float16's roundings. It also gives what comes into the first layer and out of each,
`hidden_0` and so on, and the logits, to be looked at.

    before: %5 = coreai.constant dense_resource<w> : tensor<8x8xf16>
    after:  %5 = coreai.constant dense_resource<w> : tensor<8x8xf32>
"""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from coreai_recipes.aimodel.bytecode import Replacement
from coreai_recipes.aimodel.rewriting import rewrite

FLOAT = re.compile(r"(?<=[x<])f16(?=>)")
CONSTANT = re.compile(r"( *)%(\w+) = coreai\.constant (.*) : (tensor<[\dx]*f16>)$")
WEIGHT = re.compile(
    r"( *)%(\w+) = (coreai\.(?:lut_to_dense|blockwise_shift_scale)) (.*?) : (.* -> (tensor<[\dx]*f16>))$"
)
GRAPH = re.compile(r" *coreai\.graph (private )?(?:noinline )?@(\w+)\(")
CALL = re.compile(r" *%(\w+)(:\d+)? = coreai\.invoke @(\w+)\(.* -> \(?(.*?)\)?$")
NAMED = re.compile(r'coreai\.name = "(\w+)"')
OUTPUT = re.compile(r"( *coreai\.output )(.*) : (.*)$")
# what is shown of a call, by how the name of what is called begins
INSIDE = {"front_": "x", "layer_": "y", "head_": "logits"}
END = "  }"
RESOURCE = re.compile(r"dense_resource<\"?(\w+)\"?>$")
BLOCK = 1 << 20  # weights that are widened at once


def write_twin(asset: Path, twin: Path) -> None:
    """Write the twin of the asset as the folder `twin`, which must not exist."""
    wide: set[str] = set()

    def widen(text: str) -> str:
        lines, found = widened(text)
        wide.update(found)
        return "\n".join(lines)

    def choose(name: str, content: memoryview) -> Replacement | None:
        if name not in wide:
            return None
        values = np.frombuffer(content, np.float16)
        parts = range(0, len(values), BLOCK)
        blocks = (values[at : at + BLOCK].astype(np.float32).view(np.uint8).data for at in parts)
        return Replacement(2 * len(content), lambda: blocks)

    rewrite(asset, twin, widen, choose)


def widened(text: str) -> tuple[list[str], set[str]]:
    """The lines of a program's text, widened, and which resources are float32 in them."""
    results: dict[str, list[str]] = {}
    found, wide = list[str](), set[str]()
    graph: list[str] = []
    for line in text.splitlines():
        if not graph and not GRAPH.match(line):
            found.append(line)
            continue
        graph.append(line)
        if line == END:
            found += _Graph(graph, results, wide).widened()
            graph = []
    return found, wide


class _Graph:
    """A graph of the program, its lines. `results` are those of all that came before it, by name."""

    def __init__(self, lines: list[str], results: dict[str, list[str]], wide: set[str]) -> None:
        found = GRAPH.match(lines[0])
        if found is None:
            raise ValueError(f"no graph: {lines[0]:.80}")
        self.lines, self.results, self.wide = lines, results, wide
        compressed = [of[4] for line in lines if (of := WEIGHT.match(line))]
        self.parts = set(re.findall(r"%(\w+)", " ".join(compressed)))  # what compressed weights are made of
        self.hidden = [] if found[1] else list(self._hidden())
        results[found[2]] = NAMED.findall(lines[0].partition(") -> ")[2])

    def widened(self) -> Iterator[str]:
        for number, line in enumerate(self.lines):
            if number == 0 and self.hidden:
                names = "".join(f', {kind} {{coreai.name = "{name}"}}' for name, _, kind in self.hidden)
                start, arrow, rest = line.rpartition(") {")
                line = f"{start}{names}{arrow}{rest}"
            if (found := OUTPUT.match(line)) and self.hidden:
                values, kinds = (", ".join([found[n], *(each[n - 1] for each in self.hidden)]) for n in (2, 3))
                line = f"{found[1]}{values} : {kinds}"
            yield from self._widen(line)

    def _widen(self, line: str) -> Iterator[str]:
        if (found := CONSTANT.match(line)) and found[2] in self.parts:
            yield line
        elif found and (resource := RESOURCE.match(found[3])):
            self.wide.add(resource[1])
            yield FLOAT.sub("f32", line)
        elif found:  # a number as float16 has it
            yield from self._behind(found[1], found[2], f"coreai.constant {found[3]} : {found[4]}", found[4])
        elif found := WEIGHT.match(line):
            yield from self._behind(found[1], found[2], f"{found[3]} {found[4]} : {found[5]}", found[6])
        else:
            yield FLOAT.sub("f32", line)

    def _behind(self, indent: str, name: str, operation: str, kind: str) -> Iterator[str]:
        """The operation as it is, and a cast of what it gives."""
        yield f"{indent}%stored{name} = {operation}"
        yield f"{indent}%{name} = coreai.cast %stored{name} : {kind} to {FLOAT.sub('f32', kind)}"

    def _hidden(self) -> Iterator[tuple[str, str, str]]:
        """What goes from layer to layer, and the logits where a function gives ids: name, value, type."""
        given = NAMED.findall(self.lines[0].partition(") -> ")[2])
        count = 0
        for line in self.lines:
            found = CALL.match(line)
            if found is None:
                continue
            value, several, callee, kinds = found.groups()
            results = self.results[callee]
            wanted = next((name for start, name in INSIDE.items() if callee.startswith(start)), None)
            if wanted not in results or wanted in given:
                continue
            place, is_logits = results.index(wanted), wanted == "logits"
            shown = f"%{value}#{place}" if several else f"%{value}"
            yield wanted if is_logits else f"hidden_{count}", shown, kinds.split(", ")[place]
            count += not is_logits
