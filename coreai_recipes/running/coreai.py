"""Core AI through coreai-core, on Linux and macOS: the functions of a saved asset, in a process of its own.

The runtime checks neither an asset's hash nor where rows are written; both are checked here. States are zeros that the
host allocates. They lie in files that both processes map: tensors here, read by the other process only where something
has written to them in between.
"""

import platform
from collections.abc import Collection, Mapping
from hashlib import file_digest
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coreai_recipes.aimodel.folder import HASH, PROGRAM
from coreai_recipes.errors import BundleError, UserError
from coreai_recipes.hosts.coreai_models_dynamic import OPEN
from coreai_recipes.running.call_limits import check_count
from coreai_recipes.running.coreai_process import CoreAIProcess, Place, Ports

if TYPE_CHECKING:
    from torch import Tensor

EXTRA = "pip install 'coreai-recipes[coreai]'"


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

        wanted = {name: port for name, port in self.inputs.items() if name not in self._program.held}
        if inputs.keys() != wanted.keys():
            needed, given = ", ".join(wanted), ", ".join(inputs) or "nothing"
            raise BundleError(f"function {self.name} needs the inputs {needed}, but got {given}")
        self._program.check_place(self.name, inputs)
        values = {name: inputs[name].numpy().astype(dtype) for name, (dtype, _) in wanted.items()}
        answer = self._program.ask("call", self.name, state.number, state.changed(), values)
        found = {name: torch.from_numpy(value) for name, value in answer.items()}
        if watch is not None:
            for name, value in found.items():
                watch(name, value, "output")
        return found


class CoreAIProgram:
    """The functions of the asset at `package` by name. `context` is how many positions it holds, where that is known.
    With `dense` it is a compressed asset's dense twin that runs (`aimodel.dense`), with `widened` the float32 twin
    (`aimodel.twin`) of either.

    Raises UserError where coreai-core is not installed, BundleError for an asset that is not what its hash says, and
    one that cannot be loaded.
    """

    def __init__(self, package: Path, context: int | None = None, widened: bool = False, dense: bool = False) -> None:
        check_coreai()
        check_hash(package)
        self.package, self._context = package, context
        self._functions: dict[str, CoreAIFunction] = {}
        self._process = CoreAIProcess(package)
        self.signatures: dict[str, dict[str, Ports]] = self.ask("load", widened, dense)
        self._states: Ports = {name: port for each in self.signatures.values() for name, port in each["states"].items()}
        self._made = 0
        self.held: Collection[str] = ()

    def function(self, name: str) -> CoreAIFunction:
        if name not in self.signatures:
            raise BundleError(f"there is no function {name}; available: {', '.join(self.signatures)}")
        if name not in self._functions:
            self._functions[name] = CoreAIFunction(self, name)
        return self._functions[name]

    def hold(self, function: str) -> None:
        """Keep what a function gives that takes nothing: functions which take that are given it from then on, and it
        never leaves the other process."""
        self.ask("hold", function)
        self.held = {*self.held, *self.signatures[function]["outputs"]}

    def make_state(self, rows: int | None = None) -> States:
        """Zeros, which take no memory before they are written. `rows` is what stands for a size that is open."""
        import numpy as np
        import torch

        self._made += 1
        tensors, places = dict[str, "Tensor"](), dict[str, Place]()
        for name, (dtype, described) in self._states.items():
            if rows is None and OPEN in described:
                raise ValueError(f"{self.package}: the rows of {name} are the host's to choose")
            shape = tuple(rows if rows and size == OPEN else size for size in described)
            path = str(self._process.folder / f"{self._made}_{len(places)}")
            tensors[name], places[name] = torch.from_numpy(np.memmap(path, dtype, "w+", shape=shape)), (path, shape)
        self.ask("states", self._made, places)
        return States(tensors, self._made)

    def check_place(self, function: str, inputs: Mapping[str, "Tensor"]) -> None:
        """Raise BundleError for tokens that a call does not have, and rows that are not there: the runtime reads and
        writes elsewhere, and says nothing."""
        check_count(function, inputs)
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
        """What the process answers. Raises BundleError with the runtime's words."""
        return self._process.ask(what, *given)

    def close(self) -> None:
        """End the process."""
        self._process.close()


def has_devices_kernels() -> bool:
    """Whether the runtime is a Mac's. That for Linux multiplies float16 at 0.06 GFLOP/s, and makes all weights of a
    compressed asset in each call: SmolLM2-135M's first answer came after 160 s, and by its dense twin in float32 after
    5."""
    return platform.system() == "Darwin"


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
