"""Small assets written from text. A case is the body of a function; one asset holds the functions of many."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from coreai_recipes.aimodel.folder import HASH, METADATA, PROGRAM

Kinds = dict[str, str]


@dataclass
class Case:
    """A function's body over its inputs and states, whose kinds are as MLIR has them: `1x32xf16`."""

    build: Callable[..., Any]
    inputs: Kinds
    states: Kinds = field(default_factory=dict)
    level: str = "error"


@dataclass
class Body:
    """The operations of one graph as they are written, in MLIR's generic form."""

    blobs: dict[str, bytes]
    kinds: Kinds = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)

    def value(self, kind: str) -> str:
        name = f"%v{len(self.kinds)}"
        self.kinds[name] = kind
        return name

    def numbers(self, numbers: str, kind: str) -> str:
        name = self.value(kind)
        self.lines.append(f"{name} = coreai.constant dense<{numbers}> : tensor<{kind}>")
        return name

    def weight(self, kind: str, data: bytes = bytes(64)) -> str:
        """A constant in a blob, of which only as many bytes are written as are given."""
        name = self.value(kind)
        blob = f"resource_{len(self.blobs)}"  # as coreai-torch names its own
        self.blobs[blob] = data
        self.lines.append(f"{name} = coreai.constant dense_resource<{blob}> : tensor<{kind}>")
        return name

    def make(self, operation: str, kind: str, *operands: str) -> str:
        given = ", ".join(f"tensor<{self.kinds[operand]}>" for operand in operands)
        name = self.value(kind)
        self.lines.append(f'{name} = "coreai.{operation}"({", ".join(operands)}) : ({given}) -> tensor<{kind}>')
        return name

    def wide(self, operation: str, kind: str, *operands: str) -> str:
        """An operation that brings its operands to one shape."""
        return self.make(f"decomposable.broadcasting_{operation}", kind, *operands)

    def read(self, state: str) -> str:
        """What a state holds, which is then written to it as it is: a program writes each that it is given."""
        kind = self.kinds[state].removeprefix("!coreai.handle<tensor<").removesuffix(">>")
        token, name = self.value("token"), self.value(kind)
        self.lines.append(f"{token} = coreai.create_token : !coreai.token")
        self.lines.append(
            f'{name}:2 = "coreai.read_handle"({state}, {token}) : ({self.kinds[state]}, !coreai.token) -> '
            f"(tensor<{kind}>, !coreai.token)"
        )
        self.kinds[f"{name}#0"] = kind
        written = self.value("token")
        self.lines.append(
            f'{written} = "coreai.write_handle"({state}, {name}#0, {name}#1) : ({self.kinds[state]}, tensor<{kind}>, '
            "!coreai.token) -> !coreai.token"
        )
        self.tokens.append(written)
        return f"{name}#0"

    def call(self, graph: str, kind: str, *operands: str) -> str:
        given = ", ".join(f"tensor<{self.kinds[operand]}>" for operand in operands)
        name = self.value(kind)
        self.lines.append(f"{name} = coreai.invoke @{graph}({', '.join(operands)}) : ({given}) -> tensor<{kind}>")
        return name


def graph_of(name: str, case: Case, blobs: dict[str, bytes], words: str = "") -> str:
    """The text of a case as a graph that gives `y`."""
    body = Body(blobs)
    ports = {port: f"tensor<{kind}>" for port, kind in case.inputs.items()}
    ports |= {port: f"!coreai.handle<tensor<{kind}>>" for port, kind in case.states.items()}
    for port, kind in ports.items():
        body.kinds[f"%{port}"] = kind.removeprefix("tensor<").removesuffix(">") if port in case.inputs else kind
    result = case.build(body, *(f"%{port}" for port in ports))
    given = ", ".join(f'%{port}: {kind} {{coreai.name = "{port}"}}' for port, kind in ports.items())
    kinds = ["!coreai.token"] * len(body.tokens) + [f"tensor<{body.kinds[result]}>"]
    made = ", ".join(
        f'{kind} {{coreai.name = "{port}"}}' for kind, port in zip(kinds, [*case.states, "y"], strict=True)
    )
    lines = "\n".join([*body.lines, f"coreai.output {', '.join([*body.tokens, result])} : {', '.join(kinds)}"])
    return f"coreai.graph {words} @{name}({given}) -> ({made}) {{\n{lines}\n}}\n"


def text_of(functions: Mapping[str, Case], private: Mapping[str, Case] | None = None) -> str:
    """A program with these functions, and the private graphs that they call."""
    blobs: dict[str, bytes] = {}
    graphs = [graph_of(name, case, blobs, "private noinline") for name, case in (private or {}).items()]
    graphs += [graph_of(name, case, blobs) for name, case in functions.items()]
    held = ",\n".join(f'{name}: "0x10000000{data.hex()}"' for name, data in blobs.items())
    resources = f"{{-#\ndialect_resources: {{\nbuiltin: {{\n{held}\n}}\n}}\n#-}}\n" if blobs else ""
    return f"module {{\n{''.join(graphs)}}}\n{resources}"


def write_asset(text: str, asset: Path) -> Path:
    """The program as the folder `asset`, which must not exist. No runtime is asked whether it would run."""
    from coreai._compiler.ir import Location, Module
    from coreai.authoring import Context
    from coreai.authoring.asset import AIProgram

    asset.mkdir()
    with Context()._mlir_context, Location.unknown():
        AIProgram._from_mlir_module(Module.parse(text))._save_bytecode(asset / PROGRAM)
    (asset / HASH).write_bytes(b"")
    (asset / METADATA).write_text("{}")
    return asset
