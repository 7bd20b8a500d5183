"""Several packages as one engine: a function runs in each package that has it, in running order (docs/bundle.md)."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coreai_recipes.errors import BundleError

if TYPE_CHECKING:
    from torch import Tensor

    from coreai_recipes.manifest.schema import Manifest
    from coreai_recipes.running.program import Engine, Function, Watch


def chained(engines: "Sequence[Engine]", manifest: "Manifest") -> "Engine":
    """The engines of a manifest's programs as one."""
    return engines[0] if len(engines) == 1 else Chain(engines, manifest)


class Chain:
    """Its state is a list of those of its engines; states of one name are one where engines show them by name."""

    def __init__(self, engines: "Sequence[Engine]", manifest: "Manifest") -> None:
        self._engines, self._manifest = engines, manifest
        self._functions: dict[str, ChainedFunction] = {}

    def function(self, name: str) -> "ChainedFunction":
        if name not in self._manifest.functions:
            raise BundleError(f"there is no function {name}; available: {', '.join(self._manifest.functions)}")
        if name not in self._functions:
            programs, chain = self._manifest.programs, self._manifest.chain(name)
            places = [place for place, program in enumerate(programs) if name in program.functions]
            functions = [self._engines[place].function(name) for place in places]
            taken = [each.inputs.keys() for each in chain]
            self._functions[name] = ChainedFunction(name, places, functions, taken, self._manifest.functions[name])
        return self._functions[name]

    def make_state(self) -> list[Any]:
        shared: dict[str, Any] = {}
        states = [engine.make_state() for engine in self._engines]
        for state in states:
            if isinstance(state, dict):
                shared |= state
        return [shared if isinstance(state, dict) else state for state in states]


class ChainedFunction:
    """`described` is the function as a host sees it; `taken` the inputs of each link."""

    def __init__(
        self,
        name: str,
        places: Sequence[int],
        functions: "Sequence[Function]",
        taken: Sequence[Collection[str]],
        described: Any,
    ) -> None:
        self._name, self._described = name, described
        self._links = list(zip(places, functions, taken, strict=True))

    @property
    def overflowed(self) -> list[str]:
        return [name for _, function, _ in self._links for name in function.overflowed]

    @property
    def nans(self) -> list[str]:
        return [name for _, function, _ in self._links for name in function.nans]

    def __call__(
        self, inputs: Mapping[str, Any], state: list[Any], watch: "Watch | None" = None
    ) -> "dict[str, Tensor]":
        if inputs.keys() != self._described.inputs.keys():
            needed, given = ", ".join(self._described.inputs), ", ".join(inputs) or "nothing"
            raise BundleError(f"function {self._name} needs the inputs {needed}, but got {given}")
        known: dict[str, Any] = dict(inputs)
        for place, function, taken in self._links:
            known |= function({name: known[name] for name in taken}, state[place], watch)
        return {name: known[name] for name in self._described.outputs}


def check_shared(packages: Sequence[Path]) -> None:
    """Raise BundleError where packages share a state, which Core ML keeps inside one package."""
    from coreai_recipes.evaluate.package_reader import Package

    seen: dict[str, Path] = {}
    for package in packages:
        names = {name for _, _, states in Package(package, checked=False).signatures().values() for name in states}
        BundleError.collect(
            f"{package}: shares the state {name} with {seen[name].name}, but Core ML keeps a state within one package: "
            "use --runtime evaluator"
            for name in sorted(names & seen.keys())
        )
        seen |= dict.fromkeys(names, package)
