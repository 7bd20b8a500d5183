"""The program of a package: its fragments' graphs, the functions linked of them, and as bytes without a weight."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from coreai_recipes.decoder.stack import StackModule
from coreai_recipes.export.fragments import Fragment
from coreai_recipes.export.functions import link_functions
from coreai_recipes.export.linking import Numbers
from coreai_recipes.export.reporting import Signature
from coreai_recipes.storage.chunks import Chunk
from coreai_recipes.targets.coreai.convert import Ports
from coreai_recipes.targets.coreai.linker import GraphLinker, PrivateGraph
from coreai_recipes.targets.coreai.weights import Constants


def link_program(
    stacks: Sequence[StackModule],
    chunks: Sequence[Chunk],
    chunk: Chunk,
    fragments: Mapping[str, Fragment],
    converted: Mapping[str, bytes],
    numbers: Numbers,
) -> tuple[bytes, dict[str, Signature]]:
    """The bytecode, with a stand-in for each weight (`weights.stand_in`), and the signatures of its functions."""
    linkers: list[GraphLinker] = []
    with _new_module() as module:
        used = _Used(fragments, converted, module)

        def start(name: str) -> GraphLinker:
            open_sizes = stacks[0].recipe.export.host == "coreai-models-dynamic"
            linkers.append(GraphLinker(name, Constants(chunk.parameters, open_sizes)))
            return linkers[-1]

        signatures = link_functions(stacks, chunks, chunk, used, start, numbers)
        for linker in linkers:
            linker.end()
        return _serialized(module), signatures


class _Used(Mapping[str, PrivateGraph]):
    """Converted fragments by name: the graph of one comes into the program when it is first asked for."""

    def __init__(self, fragments: Mapping[str, Fragment], converted: Mapping[str, bytes], module: Any) -> None:
        self._fragments, self._converted, self._module = fragments, converted, module
        self._added: dict[str, PrivateGraph] = {}

    def __getitem__(self, name: str) -> PrivateGraph:
        if name not in self._added:
            self._add(name)
            self._added[name] = PrivateGraph(name, Ports.of(self._fragments[name]))
        return self._added[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._converted)

    def __len__(self) -> int:
        return len(self._converted)

    def _add(self, name: str) -> None:
        from coreai._compiler.ir import InsertionPoint, UnitAttr
        from coreai.authoring.asset import AIProgram

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "fragment.mlirb"
            path.write_bytes(self._converted[name])
            loaded = AIProgram._load_bytecode(path, self._module.context)._module._mlir_module
        held = {each.sym_name.value for each in self._module.body.operations}
        for graph in loaded.body.operations:
            if graph.sym_name.value in held:  # an operation that other fragments declare too
                continue
            copy = graph.operation.clone(ip=InsertionPoint.at_block_begin(self._module.body))
            for attribute in ("priv", "no_inline"):  # kept as it is: a layer can be run by itself
                copy.attributes[attribute] = UnitAttr.get(self._module.context)


@contextmanager
def _new_module() -> Iterator[Any]:
    """An empty module, into whose body operations go. It says nothing of the code that made it."""
    from coreai._compiler.ir import InsertionPoint, Location, Module
    from coreai.authoring import Context

    with Context()._mlir_context, Location.unknown():
        module = Module.create()
        with InsertionPoint(module.body):
            yield module


def _serialized(module: Any) -> bytes:
    from coreai.authoring.asset import AIProgram

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "program.mlirb"
        AIProgram._from_mlir_module(module)._save_bytecode(path)
        return path.read_bytes()
