"""An .aimodel's program as rules see it: each function with the graphs that it calls written out in their places.

A process of its own reads a file, for coreai-core aborts over a broken one. The place of an operation is the graph
that it stands in, which of the function's calls of that graph it is, and its result as MLIR prints it:
`layer_full_1.2/%87` is in the third call of `layer_full_1`, and `%12` in the function itself.
"""

import json
import os
import re
import struct
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from coreai_recipes.aimodel.bytecode import BytecodeError
from coreai_recipes.aimodel.folder import PROGRAM
from coreai_recipes.aimodel.graphs import read_graphs
from coreai_recipes.child_process import command_of, take_output
from coreai_recipes.errors import UserError
from coreai_recipes.evaluate.errors import EvaluationError
from coreai_recipes.lint.program import MOST_OPERATIONS, UNKNOWN, Function, Operation, Program, Value
from coreai_recipes.lint.sizes import Sizes
from coreai_recipes.lint.small_constants import FORMATS, MOST_NUMBERS, Peek
from coreai_recipes.lint.vocabulary import named

EXTRA = "pip install 'coreai-recipes[coreai]'"
UNREAD = f"its program is read by coreai-core, which is not installed: {EXTRA}"
MOST_DEPTH = 100
TOKEN = "!coreai.token"
HANDLE = "handle "
NUMBER = re.compile(r"(bf|f|i|si|ui)(\d+)$")
KINDS = {"bf": "bfloat", "f": "float", "i": "int", "si": "int", "ui": "uint"}
PASSED_OVER = frozenset({"coreai.create_token", "coreai.join_token", "coreai.yield", "coreai.condition"})
REGIONS = frozenset({"coreai.if", "coreai.while", "coreai.isolated_group"})  # others have arithmetic of single numbers

Document = Mapping[str, Any]


def is_readable() -> bool:
    """Whether coreai-core is there, which reads such a program."""
    return find_spec("coreai") is not None


def read_asset(asset: Path, is_ours: bool = False) -> Program:
    """The program of the asset; one that this process has written, `is_ours`, is read in it. Raises UserError without
    coreai-core, EvaluationError for what is none or damaged."""
    if not is_readable():
        raise UserError(f"{asset}: {UNREAD}")
    file = asset / PROGRAM
    if not asset.is_dir():
        raise EvaluationError(f"{asset}: there is no such asset")
    if file.is_symlink() or not file.is_file():
        raise EvaluationError(f"{asset}: is no asset of Core AI: it has no {PROGRAM}")
    answer = read_graphs(asset) if is_ours else _read_elsewhere(asset, file)
    graphs = {graph["name"]: graph for graph in answer["graphs"]}
    blobs = {name: (int(start), int(size)) for name, (start, size) in answer["blobs"].items()}
    functions = [_Reading(graph, graphs, asset, blobs).function for graph in graphs.values() if not graph["private"]]
    if not functions:
        raise EvaluationError(f"{asset}: has no functions")
    return Program(functions)


def _read_elsewhere(asset: Path, file: Path) -> Document:
    command = command_of(__name__, write_graphs.__name__, str(asset))
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode:
        raise EvaluationError(f"{file}: coreai-core cannot read it: {_last_words(done.stderr, done.returncode)}")
    answer: Document = json.loads(done.stdout)
    if "problem" in answer:
        raise EvaluationError(f"{file}: {answer['problem']}")
    return answer


def _last_words(error: bytes, status: int) -> str:
    """Of a process that ended before it was done."""
    lines = [line for line in error.decode("utf-8", "replace").splitlines() if line.strip()]
    if status < 0 or not lines:
        return "it is damaged, or of another version"
    return "".join(char if char.isprintable() else " " for char in lines[-1].strip())[:160]


def write_graphs(asset: str) -> None:
    """In a process of its own: what `read_graphs` reads, as JSON."""
    output = take_output()
    try:
        found = read_graphs(Path(asset))
    except BytecodeError as error:
        found = {"problem": str(error)}
    except OSError as error:
        found = {"problem": f"cannot be read: {(error.strerror or str(error)).lower()}"}
    output.write(json.dumps(found).encode())
    output.flush()


class _Reading:
    """One function while it is read."""

    def __init__(
        self, graph: Document, graphs: Mapping[str, Document], asset: Path, blobs: dict[str, tuple[int, int]]
    ) -> None:
        self.graphs, self.blobs, self.asset = graphs, blobs, asset
        self.function = Function(graph["name"], peek=peek_into(asset / PROGRAM, blobs))
        self.constants: dict[tuple[str, str], Value] = {}
        self.calls: Counter[str] = Counter()
        self.steps, self.sizes = 0, Sizes()
        given = [self._argument(argument) for argument in graph["arguments"]]
        found = self._write_out(graph, given, "", frozenset())
        for name, value in zip(graph["results"] or [""] * len(found), found, strict=True):
            if value.dtype == TOKEN:
                continue
            if name and value.producer is not None and value not in self.function.outputs:
                value.name = name
            self.function.outputs.append(value)

    def _argument(self, argument: Sequence[Any]) -> Value:
        place, kind, shape, name = argument
        is_state = kind.startswith(HANDLE)
        value = Value(name or place, _dtype(kind.removeprefix(HANDLE)), tuple(shape), is_state=is_state)
        (self.function.states if is_state else self.function.inputs).append(value)
        return value

    def _write_out(self, graph: Document, given: Sequence[Value], at: str, above: frozenset[str]) -> list[Value]:
        """The operations of a graph that is given these; what it gives."""
        name = graph["name"]
        if name in above:
            raise EvaluationError(f"{self.asset}: its graph {name!r:.80} calls itself")
        if len(above) > MOST_DEPTH:
            raise EvaluationError(f"{self.asset}: its graphs call each other more than {MOST_DEPTH} deep")
        values = {argument[0]: value for argument, value in zip(graph["arguments"], given, strict=True)}
        return self._read_block(graph, graph["operations"], values, at, above | {name}, 0)

    def _read_block(
        self,
        graph: Document,
        operations: Sequence[Document],
        values: dict[str, Value],
        at: str,
        above: frozenset[str],
        depth: int,
    ) -> list[Value]:
        for operation in operations:
            self.steps += 1
            if self.steps > MOST_OPERATIONS:
                raise EvaluationError(f"{self.asset}: a function has more than {MOST_OPERATIONS:,} operations")
            kind, made = operation["type"], operation["results"]
            operands = [values[name] for name in operation["operands"]]
            if kind == "coreai.output":
                return operands
            if kind == "coreai.constant":
                values[made[0][0]] = self._constant(graph["name"], operation)
            elif kind in PASSED_OVER:
                values |= {name: Value(name, words, tuple(shape)) for name, words, shape in made}
            elif kind == "coreai.invoke" and operation["callee"] in self.graphs:
                callee = operation["callee"]
                place = f"{at}{callee}.{self.calls[callee]}/"
                self.calls[callee] += 1
                found = self._write_out(self.graphs[callee], operands, place, above)
                values |= {result[0]: value for result, value in zip(made, found, strict=True)}
            else:
                if kind == "coreai.invoke":  # of what lies elsewhere
                    kind = operation["callee"]
                self._read_operation(kind, operands, made, values, at, depth)
                for block in operation.get("blocks", ()) if operation["type"] in REGIONS else ():
                    for name, words, shape in block["arguments"]:
                        values[name] = Value(f"{at}{name}", _dtype(words), tuple(shape))
                    self._read_block(graph, block["operations"], values, at, above, depth + 1)
        return []

    def _read_operation(
        self,
        kind: str,
        operands: Sequence[Value],
        made: Sequence[Sequence[Any]],
        values: dict[str, Value],
        at: str,
        depth: int,
    ) -> None:
        name, bound = named(kind, [value for value in operands if value.dtype != TOKEN])
        results = []
        for place, words, shape in made:
            value = values[place] = Value(f"{at}{place}", _dtype(words), tuple(shape))
            if words != TOKEN:
                results.append(value)
        found = Operation(len(self.function.operations), name, bound, tuple(results), depth)
        is_constant = bool(operands) and all(value.constant for value in operands) and kind not in REGIONS
        for value in results:
            value.producer, value.constant = found, is_constant
            if UNKNOWN in value.shape:
                value.shape = self.sizes.shape_of(found, value)
        self.sizes.follow(found)
        self.function.operations.append(found)

    def _constant(self, graph: str, operation: Document) -> Value:
        """One of a graph, the same in each of its calls."""
        name, words, shape = operation["results"][0]
        if (graph, name) not in self.constants:
            value = Value(name, _dtype(words), tuple(shape), constant=True)
            blob = operation.get("blob")
            if blob is not None:
                if blob not in self.blobs:
                    raise EvaluationError(f"{self.asset}: its program has no weight {blob!r:.80}, which it takes")
                value.name, value.blob = blob, (blob, self.blobs[blob][0])
            elif "numbers" in operation:
                value.literal = tuple(operation["numbers"])
            self.constants[graph, name] = value
            self.function.constants.append(value)
        return self.constants[graph, name]


def _dtype(words: str) -> str:
    """`float16` of `f16`, `int32` of `si32`; any other type by its own name."""
    found = NUMBER.match(words)
    if found is None:
        return words
    return "bool" if words == "i1" else f"{KINDS[found[1]]}{found[2]}"


def peek_into(file: Path, blobs: Mapping[str, tuple[int, int]]) -> Peek:
    """Reads the first numbers of a float constant that lies in a blob; None for any other."""

    def peek(value: Value) -> list[float] | None:
        code = FORMATS.get(value.dtype)
        if value.blob is None or code is None:
            return None
        start, size = blobs[value.blob[0]]
        width = struct.calcsize(code)
        count = min(MOST_NUMBERS, value.count, size // width)
        try:
            handle = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return None  # whoever runs the program says so
        try:
            data = os.pread(handle, max(count, 0) * width, start)
        finally:
            os.close(handle)
        return list(struct.unpack(f"<{len(data) // width}{code}", data[: len(data) // width * width])) or None

    return peek
