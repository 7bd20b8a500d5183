"""A bundle's functions by name, whatever runs them: one for everyone who calls a package."""

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from coreai_recipes.errors import UserError
from coreai_recipes.running.buffer import RowBuffer
from coreai_recipes.running.call_limits import check_count, check_tokens
from coreai_recipes.running.coreml import CoreMLProgram, check_coreml, why_no_coreml
from coreai_recipes.running.host_caches import DRAFT, HostCaches

if TYPE_CHECKING:
    from torch import Tensor

    from coreai_recipes.manifest.schema import Manifest
    from coreai_recipes.running.engine import Engine, Watch
    from coreai_recipes.running.tables import Tables

RUNTIMES = ("auto", "evaluator", "coreml", "coreai")
Chosen = Literal["evaluator", "coreml", "coreai"]


class SavedProgram:
    """Calls functions by name on states that stay between calls, and hands them the rows of the bundle's tables, what
    the call before gave of the tensors that are `carried`, whose shapes these are by name, and the `caches` that a host
    keeps. `keep` may change what is kept of what is carried between two calls.

    With a `buffer` the carried tensors are those of the last commit, which is made whenever a call would find no room.
    `adapter` are the inputs that make up an adapter, or zeros for none: what is kept between calls is of it.
    Tokens outside a vocabulary of `vocab_size` are refused, of which runtimes take another's row or end.
    """

    def __init__(
        self,
        engine: "Engine",
        tables: "Tables | None" = None,
        carried: "Mapping[str, tuple[int, ...]] | None" = None,
        keep: "Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]" = lambda given: given,
        caches: "HostCaches | None" = None,
        buffer: RowBuffer | None = None,
        adapter: "Mapping[str, Tensor] | None" = None,
        vocab_size: int | None = None,
    ) -> None:
        self._vocab_size = vocab_size
        self._adapter: Mapping[str, Tensor] = adapter or {}
        self._engine, self._tables, self._keep, self._caches, self._buffer = engine, tables, keep, caches, buffer
        self._states: Any = None
        self._shapes = carried or {}
        self._carried: Mapping[str, Tensor] = {}

    def call(self, function: str, inputs: "Mapping[str, Tensor]", watch: "Watch | None" = None) -> "dict[str, Tensor]":
        """The outputs by name. `watch(name, value, operation)` is told each value inside, where that can be seen.
        Raises BundleError for a token that is not in the vocabulary, and a count that is not of the call's tokens."""
        if self._vocab_size is not None:
            check_tokens(function, inputs, self._vocab_size)
        check_count(function, inputs)
        given = inputs if self._tables is None else self._tables.with_rows(function, inputs)
        caches = {} if self._caches is None else self._caches.read_by(function)
        carried = {} if function == DRAFT else self._carried_to(inputs)  # a draft reads caches alone
        all_given = {**given, **carried, **caches, **self._adapter}
        outputs = self._engine.function(function)(all_given, self._own_states, watch)
        if self._caches is not None:
            outputs = self._caches.write(inputs, outputs)
        if carried:
            self._take(inputs, outputs)
        return {name: output for name, output in outputs.items() if name.removeprefix("new_") not in carried}

    def _carried_to(self, inputs: "Mapping[str, Tensor]") -> "Mapping[str, Tensor]":
        """What a call is given of what is carried, for which room is made where rows are."""
        if self._buffer is None:
            return self.carried
        position, count = _extent(inputs)
        if position == 0:
            self.restore({}, 0)
        self.commit(self._buffer.to_commit(position, count))
        return {**self.carried, **self._buffer.inputs}

    def _take(self, inputs: "Mapping[str, Tensor]", outputs: "Mapping[str, Tensor]") -> None:
        """Keep what a call has given of what is carried."""
        if self._buffer is None:
            self._carried = self._keep({name: outputs[f"new_{name}"] for name in self._shapes})
        else:
            self._buffer.put(*_extent(inputs), outputs)

    def commit(self, position: int) -> None:
        """Carry what the rows before `position` have made of the states; nothing where they are of it already."""
        import torch

        buffer = self._buffer
        if buffer is None or position == buffer.base:
            return
        given = {**self.carried, **buffer.inputs, "position": torch.tensor([position], dtype=torch.int32)}
        outputs = self._engine.function("commit")(given, self._own_states, None)
        self.restore(self._keep({name: outputs[f"new_{name}"] for name in self._shapes}), position)

    @property
    def buffered(self) -> bool:
        """Whether it keeps rows since a last commit."""
        return self._buffer is not None

    @property
    def base(self) -> int:
        """The position of the last commit."""
        return 0 if self._buffer is None else self._buffer.base

    @property
    def states(self) -> Any:
        """As the last call left them: of the evaluator, tensors by name, those that are carried and kept too.
        Rows of a buffer are none of them: `commit` first."""
        own = self._own_states
        kept = {} if self._caches is None else self._caches.tensors
        return {**own, **self.carried, **kept} if isinstance(own, dict) else own

    @property
    def _own_states(self) -> Any:
        """Those that the engine keeps itself."""
        if self._states is None:
            self._states = self._engine.make_state()
        return self._states

    @property
    def carries(self) -> bool:
        """Whether it takes tensors that its calls gave."""
        return bool(self._shapes)

    @property
    def carried(self) -> "Mapping[str, Tensor]":
        """What the next call is given of them. No call changes these tensors: who keeps them can go back to them."""
        if self._shapes and not self._carried:
            import torch

            self._carried = {name: torch.zeros(shape) for name, shape in self._shapes.items()}
        return self._carried

    def restore(self, carried: "Mapping[str, Tensor]", position: int) -> None:
        """Carry what was carried at a position. Nothing is what stands before the first token: zeros."""
        self._carried = carried
        if self._buffer is not None:
            self._buffer.base = position

    def reset(self) -> None:
        """Start anew, with states of zeros."""
        self._states = None
        self.restore({}, 0)
        if self._caches is not None:
            self._caches.reset()

    def faults(self, function: str) -> tuple[Collection[str], Collection[str]]:
        """Of the last call of a function: the operations where infinity began, and those where NaN did."""
        found = self._engine.function(function)
        return found.overflowed, found.nans


def open_program(
    folder: Path,
    manifest: "Manifest",
    runtime: str = "auto",
    compute_units: str = "cpu_and_ne",
    adapter: str | None = None,
) -> SavedProgram:
    """As `open_programs`, with one of the bundle's adapters or none."""
    return open_programs(folder, manifest, runtime, compute_units, [adapter])[0]


def open_programs(
    folder: Path, manifest: "Manifest", runtime: str, compute_units: str, adapters: Sequence[str | None]
) -> list[SavedProgram]:
    """The programs and tables of the bundle in `folder`, in float32 where the evaluator runs them, else by Core ML on
    `compute_units`: with each of these adapters of its, each with states of its own. Raises UserError when the runtime
    cannot be had here, or the bundle cannot be opened."""
    from coreai_recipes.running.adapters import check_adapter, inputs_of
    from coreai_recipes.running.chain import chained, check_shared
    from coreai_recipes.running.tables import Tables

    for adapter in adapters:
        check_adapter(str(folder), manifest, adapter)
    runtime = choose_runtime(runtime, manifest.package_format)
    packages = [folder / program.file for program in manifest.programs]
    if runtime == "coreml":
        check_shared(packages)
    engines = [open_engine(package, runtime, compute_units, manifest.context) for package in packages]
    programs = [program.functions for program in manifest.programs]
    engine = as_ours(chained(engines, programs), manifest.host, manifest.context, manifest.vocab_size)
    tables, kept = Tables.of_manifest(folder, manifest), manifest.host_caches
    carried = {name: tensor.shape for name, tensor in (manifest.carried or {}).items() if name not in kept}
    rows = {name: carried.pop(name) for name in manifest.buffers}
    score = manifest.functions.get("score")

    def program(adapter: str | None) -> SavedProgram:
        buffer = RowBuffer(rows, 0 if score is None else score.query - 1) if rows else None
        caches = HostCaches({name: cache.shape for name, cache in kept.items()}, _drafting(manifest)) if kept else None
        inputs = inputs_of(folder, manifest, adapter)
        vocab_size = manifest.vocab_size
        return SavedProgram(
            engine, tables, carried, caches=caches, buffer=buffer, adapter=inputs, vocab_size=vocab_size
        )

    return [program(adapter) for adapter in adapters]


def _extent(inputs: "Mapping[str, Tensor]") -> tuple[int, int]:
    """The position of a call, and how many tokens it has."""
    return int(inputs["position"]), int(inputs["count"]) if "count" in inputs else 1


def _drafting(manifest: "Manifest") -> Collection[str]:
    """What a draft is given by name."""
    return manifest.functions[DRAFT].inputs.keys() if DRAFT in manifest.functions else ()


def as_ours(engine: "Engine", host: str | None, context: int, vocab_size: int) -> "Engine":
    """An engine of a package for another project's `host`, with the functions of docs/bundle.md."""
    if host is None:
        return engine
    if host == "anemll":
        from coreai_recipes.running.anemll import OwnCalls

        return OwnCalls(engine, context, vocab_size)
    from coreai_recipes.running.coreai import CoreAIProgram
    from coreai_recipes.running.coreai_models import OwnCalls as OwnCallsOfStatic
    from coreai_recipes.running.coreai_models_dynamic import OwnCalls as OwnCallsOfDynamic

    if not isinstance(engine, CoreAIProgram):
        raise TypeError("an .aimodel is run by Core AI's runtime")
    own_calls = OwnCallsOfStatic if host == "coreai-models" else OwnCallsOfDynamic
    return own_calls(engine, context, vocab_size)


def open_engine(package: Path, runtime: str, compute_units: str = "cpu_and_ne", context: int | None = None) -> "Engine":
    """One package: by Core ML on `compute_units`, by Core AI, whose calls stay within `context`, or by the evaluator.
    The evaluator and Core AI for Linux compute in float32."""
    if runtime == "coreai":
        from coreai_recipes.running.coreai import CoreAIProgram, has_devices_kernels

        by_twin = not has_devices_kernels()
        return CoreAIProgram(package, context, widened=by_twin, dense=by_twin)
    if runtime == "coreml":
        return CoreMLProgram(package, compute_units)
    from coreai_recipes.evaluate import Program

    return Program(package)


def proving_runtime(package_format: str) -> Chosen:
    """What runs a package of this format where nothing else is asked for, on every machine."""
    return "coreai" if package_format == "coreai" else "evaluator"


def choose_runtime(name: str, package_format: str = "coreml") -> Chosen:
    """What runs a package of this format. Raises UserError when it cannot be had here."""
    if name not in RUNTIMES:
        raise UserError(f"runtime {name} is not one of {', '.join(RUNTIMES)}")
    if (package_format == "coreai") != (name == "coreai") and name != "auto":
        runs = "Core AI's runtime runs an .aimodel" if package_format == "coreai" else "it runs an .aimodel"
        raise UserError(f"runtime {name}: {runs}, and nothing else does: leave out --runtime")
    if package_format == "coreai":
        from coreai_recipes.running.coreai import check_coreai

        check_coreai()
        return "coreai"
    if name == "coreml":
        check_coreml()
    return "evaluator" if name == "evaluator" or (name == "auto" and why_no_coreml() is not None) else "coreml"
