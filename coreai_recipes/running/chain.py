"""Several packages as one engine: a function runs in each package that has it, in running order (docs/bundle.md)."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coreai_recipes.errors import BundleError

if TYPE_CHECKING:
    from torch import Tensor

    from coreai_recipes.evaluate.package_reader import Ports
    from coreai_recipes.manifest.schema import Function as Described
    from coreai_recipes.running.engine import Engine, Function, Watch


def chained(engines: "Sequence[Engine]", programs: "Sequence[Mapping[str, Described]]") -> "Engine":
    """The engines of packages, whose functions are described in `programs`, as one."""
    return engines[0] if len(engines) == 1 else Chain(engines, programs)


def functions_of(package: Path) -> "dict[str, Described]":
    """What the program of a package says of its functions."""
    from coreai_recipes.evaluate.package_reader import Package
    from coreai_recipes.manifest.schema import Function, Port

    def described(ports: "Ports") -> dict[str, Port]:
        return {name: Port.model_construct(dtype=dtype, shape=shape) for name, (dtype, shape) in ports.items()}

    return {
        name: Function.model_construct(query=1, inputs=described(inputs), outputs=described(outputs))
        for name, (inputs, outputs, _) in Package(package, checked=False).signatures().items()
    }


class Chain:
    """Its state is a list of those of its engines, or one by name where engines show them by name."""

    def __init__(self, engines: "Sequence[Engine]", programs: "Sequence[Mapping[str, Described]]") -> None:
        self._engines, self._programs = engines, programs
        self._functions: dict[str, ChainedFunction] = {}

    def function(self, name: str) -> "ChainedFunction":
        from coreai_recipes.manifest.schema import joined

        places = [place for place, program in enumerate(self._programs) if name in program]
        if not places:
            there = dict.fromkeys(name for program in self._programs for name in program)
            raise BundleError(f"there is no function {name}; available: {', '.join(there)}")
        if name not in self._functions:
            chain = tuple(self._programs[place][name] for place in places)
            functions = [self._engines[place].function(name) for place in places]
            taken = [each.inputs.keys() for each in chain]
            self._functions[name] = ChainedFunction(name, places, functions, taken, joined(chain))
        return self._functions[name]

    def make_state(self) -> Any:
        states = [engine.make_state() for engine in self._engines]
        if not all(isinstance(state, dict) for state in states):
            return states
        shared: dict[str, Any] = {}
        for state in states:
            shared |= state
        return shared


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

    def __call__(self, inputs: Mapping[str, Any], state: Any, watch: "Watch | None" = None) -> "dict[str, Tensor]":
        if inputs.keys() != self._described.inputs.keys():
            needed, given = ", ".join(self._described.inputs), ", ".join(inputs) or "nothing"
            raise BundleError(f"function {self._name} needs the inputs {needed}, but got {given}")
        known: dict[str, Any] = dict(inputs)
        for place, function, taken in self._links:
            own = state if isinstance(state, dict) else state[place]
            known |= function({name: known[name] for name in taken}, own, watch)
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
