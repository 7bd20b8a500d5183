"""The process that coreai-core works in: a broken file aborts it, and the runtime prints to standard output."""

import errno
import pickle
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from coreai_recipes.child_process import command_of, take_output
from coreai_recipes.errors import BundleError

if TYPE_CHECKING:
    from coreai_recipes.aimodel.dense import Weight

TWIN, DENSE = "twin.aimodel", "dense.aimodel"
SAID = 2000  # characters of what a process that ended had said
Ports = dict[str, tuple[str, tuple[int, ...]]]
Place = tuple[str, tuple[int, ...]]  # the file of a state, and its shape


class CoreAIProcess:
    """A process that looks at the asset `package`; `folder` is for files of both processes, and ends with it."""

    def __init__(self, package: Path) -> None:
        self.package = package
        self._temporary = tempfile.TemporaryDirectory()
        self.folder = Path(self._temporary.name)
        self._log = self.folder / "log"
        command = command_of(__name__, "main", str(package.absolute()), str(self.folder))
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log)

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
            if code == -signal.SIGBUS:  # a page of a mapped file that the disk has no room for
                raise BundleError(f"{self.package}: {_no_space()}") from None
            said = self._log.read_text(errors="replace").strip()[-SAID:].splitlines()
            why = f": {said[-1]}" if said else ""
            raise BundleError(
                f"{self.package}: Core AI's runtime ended with status {code}{why}\n"
                "  the asset may be damaged, or of another version: build it again"
            ) from None
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
        self._temporary.cleanup()

    def __del__(self) -> None:
        if hasattr(self, "_process"):
            self.close()


def main(package: str, folder: str) -> None:
    """The other process: answers questions on standard input until it ends. What the runtime prints is kept away."""
    answers = take_output()
    _Served(Path(package), Path(folder), sys.stdin.buffer, answers).serve()


class _Served:
    def __init__(self, package: Path, folder: Path, questions: BinaryIO, answers: BinaryIO) -> None:
        self._package, self._folder = package, folder
        self._questions, self._answers = questions, answers
        self._functions: dict[str, tuple[Any, Ports]] = {}  # and the states of each
        self._states: dict[int, dict[str, Any]] = {}  # the files that hold them
        self._held: dict[str, Any] = {}  # the runtime's own arrays, which are copies of these
        self._given: dict[str, Any] = {}  # inputs that stay here

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
                except OSError as error:
                    answer = False, _no_space() if error.errno == errno.ENOSPC else str(error)
                except Exception as error:  # the runtime raises RuntimeError, KernelError and others
                    answer = False, " ".join(str(error).split()) or type(error).__name__
                pickle.dump(answer, self._answers)
                self._answers.flush()

    async def load(self, widened: bool, dense: bool) -> dict[str, dict[str, Ports]]:
        """The signatures of its functions, and of the graphs that they call."""
        from coreai.authoring import AIModelAsset

        asset = AIModelAsset.load(str(self._written(widened, dense)))
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

    def _written(self, widened: bool, dense: bool) -> Path:
        """The asset, or the twin of it that is asked for, written."""
        asset = self._package
        if dense:
            from coreai_recipes.aimodel.dense import is_compressed, write_dense
            from coreai_recipes.running.asset_weights import decompressing

            if is_compressed(asset):
                write_dense(asset, self._folder / DENSE, decompressing(asset))
                asset = self._folder / DENSE
        if widened:
            from coreai_recipes.aimodel.twin import write_twin

            write_twin(asset, self._folder / TWIN)
            asset = self._folder / TWIN
        return asset

    async def weights(self) -> "list[Weight]":
        """What the asset's weights are made of."""
        from coreai_recipes.aimodel.dense import weights_of

        return weights_of(self._package)

    async def states(self, number: int, places: Mapping[str, Place]) -> None:
        import numpy as np

        dtypes = {name: dtype for _, own in self._functions.values() for name, (dtype, _) in own.items()}
        files = {name: np.memmap(path, dtypes[name], "r+", shape=shape) for name, (path, shape) in places.items()}
        self._states = {number: files}  # no other is asked for again

    async def hold(self, name: str) -> None:
        self._given |= await self._functions[name][0]({})

    async def call(self, name: str, number: int, changed: bool, inputs: Mapping[str, Any]) -> dict[str, Any]:
        import numpy as np
        from coreai.runtime import NDArray

        (function, taken), files = self._functions[name], self._states[number]
        if changed:
            self._held = {each: NDArray(np.array(file)) for each, file in files.items()}
        given = {each: NDArray(np.ascontiguousarray(value)) for each, value in inputs.items()}
        given |= {each: value for each, value in self._given.items() if each in function.desc.input_names}
        found = await function(given, state={each: self._held[each] for each in taken})
        for each in taken:
            files[each][...] = self._held[each].numpy()
        return {each: np.array(value.numpy()) for each, value in found.items()}


def _no_space() -> str:
    return f"no space for temporary files in {tempfile.gettempdir()}; free some, or set TMPDIR to another folder"


def _port(said: Any) -> tuple[str, tuple[int, ...]]:
    return str(said.dtype), tuple(said.shape)
