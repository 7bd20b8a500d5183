"""Core AI through coreai-core, on Linux and macOS: the functions of a saved asset, in a process of its own.

A broken file aborts the process that reads it, and the runtime prints to standard output. It checks neither an asset's
hash nor where rows are written; both are checked here. States are zeros that the host allocates. They lie in files that
both processes map: tensors here, read by the other process only where something has written to them in between.
"""

import pickle
import subprocess
import sys
import tempfile
from collections.abc import Collection, Mapping
from contextlib import suppress
from hashlib import file_digest
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from coreai_recipes.aimodel.folder import HASH, PROGRAM
from coreai_recipes.child_process import command_of, take_output
from coreai_recipes.errors import BundleError, UserError

if TYPE_CHECKING:
    from torch import Tensor

EXTRA = "pip install 'coreai-recipes[coreai]'"
TWIN = "twin.aimodel"
SAID = 2000  # characters of what a process that ended had said
Ports = dict[str, tuple[str, tuple[int, ...]]]


class States(dict[str, "Tensor"]):
    """Tensors by name. `changed` is whether they are to be read again: in the beginning, and where they were written to
    since the last call."""

    def __init__(self, tensors: Mapping[str, "Tensor"], number: int) -> None:
        super().__init__(tensors)
        self.number = number
        self._seen: list[int] | None = None

    def changed(self) -> bool:
        before, self._seen = self._seen, None
        if not any(tensor.is_inference() for tensor in self.values()):  # which count no writes
            self._seen = [tensor._version for tensor in self.values()]
        return self._seen is None or self._seen != before


class CoreAIFunction:
    """A function of the asset, of which nothing but the outputs can be watched."""

    overflowed: Collection[str] = ()
    nans: Collection[str] = ()

    def __init__(self, program: "CoreAIProgram", name: str) -> None:
        self._program, self.name = program, name
        self.inputs: Ports = program.signatures[name]["inputs"]

    def __call__(self, inputs: Mapping[str, "Tensor"], state: States, watch: Any = None) -> dict[str, "Tensor"]:
        """The outputs by name; `state` goes on. Raises BundleError for inputs that are not the function's."""
        import torch

        if inputs.keys() != self.inputs.keys():
            needed, given = ", ".join(self.inputs), ", ".join(inputs) or "nothing"
            raise BundleError(f"function {self.name} needs the inputs {needed}, but got {given}")
        self._program.check_place(self.name, inputs)
        values = {name: inputs[name].numpy().astype(dtype) for name, (dtype, _) in self.inputs.items()}
        answer = self._program.ask("call", self.name, state.number, state.changed(), values)
        found = {name: torch.from_numpy(value) for name, value in answer.items()}
        if watch is not None:
            for name, value in found.items():
                watch(name, value, "output")
        return found


class CoreAIProgram:
    """The functions of the asset at `package` by name. `context` is how many positions it holds, where that is known.
    With `widened` it is the asset's float32 twin that runs (`aimodel.twin`).

    Raises UserError where coreai-core is not installed, BundleError for an asset that is not what its hash says, and
    one that cannot be loaded.
    """

    def __init__(self, package: Path, context: int | None = None, widened: bool = False) -> None:
        check_coreai()
        check_hash(package)
        self.package, self._context = package, context
        self._functions: dict[str, CoreAIFunction] = {}
        self._folder = tempfile.TemporaryDirectory()
        self._log = Path(self._folder.name, "log")
        command = command_of(__name__, "main")
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log)
        self.signatures: dict[str, dict[str, Ports]] = self.ask("load", *self._place(package, widened))
        self._states: Ports = {name: port for each in self.signatures.values() for name, port in each["states"].items()}
        self._made = 0

    def _place(self, package: Path, widened: bool) -> tuple[str, str | None]:
        return str(package.absolute()), str(Path(self._folder.name, TWIN)) if widened else None

    def function(self, name: str) -> CoreAIFunction:
        if name not in self.signatures:
            raise BundleError(f"there is no function {name}; available: {', '.join(self.signatures)}")
        if name not in self._functions:
            self._functions[name] = CoreAIFunction(self, name)
        return self._functions[name]

    def make_state(self) -> States:
        """Zeros, which take no memory before they are written."""
        import numpy as np
        import torch

        self._made += 1
        tensors, places = dict[str, "Tensor"](), dict[str, str]()
        for name, (dtype, shape) in self._states.items():
            places[name] = path = str(Path(self._folder.name, f"{self._made}_{len(places)}"))
            tensors[name] = torch.from_numpy(np.memmap(path, dtype, "w+", shape=shape))
        self.ask("states", self._made, places)
        return States(tensors, self._made)

    def check_place(self, function: str, inputs: Mapping[str, "Tensor"]) -> None:
        """Raise BundleError for rows that are not there: the runtime writes elsewhere, and says nothing."""
        if self._context is None or "position" not in inputs:
            return
        position = int(inputs["position"][0])
        count = int(inputs["count"][0]) if "count" in inputs else 1
        if position < 0 or count < 1 or position + count > self._context:
            raise BundleError(
                f"function {function} was called with {count} tokens at position {position}; "
                f"the states hold positions 0 to {self._context - 1}"
            )

    def ask(self, what: str, *given: Any) -> Any:
        """What the process answers. Raises BundleError with the runtime's words, also where they were its last."""
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:
            raise RuntimeError("the process has no pipes")
        try:
            pickle.dump((what, given), stdin)
            stdin.flush()
            done, answer = pickle.load(stdout)
        except (BrokenPipeError, EOFError):
            code = self._process.wait()
            said = self._log.read_text(errors="replace").strip()[-SAID:].splitlines()
            why = f": {said[-1]}" if said else ""
            raise BundleError(f"{self.package}: Core AI's runtime ended with status {code}{why}") from None
        if not done:
            raise BundleError(f"{self.package}: {answer}")
        return answer

    def close(self) -> None:
        """End the process."""
        with suppress(Exception):
            self._process.communicate(timeout=10)
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._folder.cleanup()

    def __del__(self) -> None:
        if hasattr(self, "_process"):
            self.close()


def check_coreai() -> None:
    """Raise UserError where coreai-core is not installed."""
    if find_spec("coreai") is None:
        raise UserError(f"export.format coreai needs coreai-core, which is not installed: {EXTRA}")


def check_hash(package: Path) -> None:
    """Raise BundleError where an asset's program is not the one that its hash was taken of."""
    try:
        with (package / PROGRAM).open("rb") as file:
            digest = file_digest(file, "sha256").digest()
        said = (package / HASH).read_bytes()
    except OSError as error:
        raise BundleError(f"{package}: cannot be read: {(error.strerror or str(error)).lower()}") from None
    if digest != said:
        raise BundleError(f"{package}: {PROGRAM} is not the program whose digest {HASH} holds")


def main() -> None:
    """The other process: answers questions on standard input until it ends. What the runtime prints is kept away."""
    answers = take_output()
    _Served(sys.stdin.buffer, answers).serve()


class _Served:
    def __init__(self, questions: BinaryIO, answers: BinaryIO) -> None:
        self._questions, self._answers = questions, answers
        self._functions: dict[str, tuple[Any, Ports]] = {}  # and the states of each
        self._states: dict[int, dict[str, Any]] = {}  # the files that hold them
        self._held: dict[str, Any] = {}  # the runtime's own arrays, which are copies of these

    def serve(self) -> None:
        import asyncio

        asyncio.run(self._serve())

    async def _serve(self) -> None:
        from contextlib import AsyncExitStack

        async with AsyncExitStack() as self._open:
            while True:
                try:
                    what, given = pickle.load(self._questions)
                except EOFError:
                    return
                try:
                    answer = True, await getattr(self, what)(*given)
                except Exception as error:  # the runtime raises RuntimeError, KernelError and others
                    answer = False, " ".join(str(error).split()) or type(error).__name__
                pickle.dump(answer, self._answers)
                self._answers.flush()

    async def load(self, path: str, twin: str | None) -> dict[str, dict[str, Ports]]:
        """The signatures of its functions, and of the graphs that they call."""
        from coreai.authoring import AIModelAsset

        if twin is not None:
            from coreai_recipes.aimodel.twin import write_twin

            write_twin(Path(path), Path(twin))
        asset = AIModelAsset.load(path if twin is None else twin)
        model = await self._open.enter_async_context(asset.executable())
        found = {}
        for name in model.function_names:
            function = model.load_function(name)
            said = function.desc
            found[name] = {
                "inputs": {each: _port(said.input_descriptor(each)) for each in said.input_names},
                "outputs": {each: _port(said.output_descriptor(each)) for each in said.output_names},
                "states": {each: _port(said.state_descriptor(each)) for each in said.state_names},
            }
            self._functions[name] = function, found[name]["states"]
        return found

    async def states(self, number: int, places: Mapping[str, str]) -> None:
        import numpy as np

        ports = {name: port for _, own in self._functions.values() for name, port in own.items()}
        files = {name: np.memmap(path, *ports[name][:1], "r+", shape=ports[name][1]) for name, path in places.items()}
        self._states = {number: files}  # no other is asked for again

    async def call(self, name: str, number: int, changed: bool, inputs: Mapping[str, Any]) -> dict[str, Any]:
        import numpy as np
        from coreai.runtime import NDArray

        (function, taken), files = self._functions[name], self._states[number]
        if changed:
            self._held = {each: NDArray(np.array(file)) for each, file in files.items()}
        given = {each: NDArray(np.ascontiguousarray(value)) for each, value in inputs.items()}
        found = await function(given, state={each: self._held[each] for each in taken})
        for each in taken:
            files[each][...] = self._held[each].numpy()
        return {each: np.array(value.numpy()) for each, value in found.items()}


def _port(said: Any) -> tuple[str, tuple[int, ...]]:
    return str(said.dtype), tuple(said.shape)
