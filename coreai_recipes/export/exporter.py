"""The export, in order: convert what the cache does not have, link, stream the weights, write the package."""

import platform
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

import coreai_recipes
from coreai_recipes.decoder.model import PER_LAYER_ROWS, table_file
from coreai_recipes.decoder.stack import StackModule
from coreai_recipes.export.cache import FragmentCache, fingerprint
from coreai_recipes.export.fragments import Fragment, source_files
from coreai_recipes.export.weights import Encoded, write_table, write_weights
from coreai_recipes.recipe import recipe_text
from coreai_recipes.storage.base import Shape, Storage
from coreai_recipes.storage.compression import Compression
from coreai_recipes.storage.fitted import Fitted
from coreai_recipes.storage.layout import FILE as WEIGHTS
from coreai_recipes.storage.layout import WeightLayout
from coreai_recipes.storage.parameters import raw_tables, stored_parameters
from coreai_recipes.weights.binding import Binding

if TYPE_CHECKING:
    from coreai_recipes.export.package import Signature

SWITCH_SECONDS = 1e-4
# called with what is being done, how much of it is done, and how much there is
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Exported:
    """What an export wrote: digests by path from the folder that holds the package, the functions' signatures, the
    inputs that take rows of raw tables and the tables' shapes by file, seconds by step."""

    digests: dict[str, str]
    signatures: dict[str, "Signature"]
    tables: dict[str, tuple[str, tuple[int, ...]]]
    seconds: dict[str, float]
    converted: int
    cached: int


def export_package(
    stacks: Sequence[StackModule],
    bindings: Mapping[str, Binding],
    package: Path,
    cache: FragmentCache | None = None,
    progress: Progress | None = None,
    on_program: Callable[[Path], object] | None = None,
    fitted: Mapping[str, Fitted] | None = None,
) -> Exported:
    """Write `stacks`, with the weights of `bindings`, as the .mlpackage folder `package`, which must not exist.

    `on_program` is called with the package when its program is written, while most of the weights are still to come.
    Parameters of `fitted` were encoded before, all others are now.

    The weights stream on a second thread while the fragments are converted: neither needs the other. Peak memory does
    not grow with the number of layers. Raises CheckpointError for a weight that float16 cannot hold.
    """

    cache = cache or FragmentCache(None)
    compression, layout = Compression.of(stacks[0].recipe), WeightLayout.of(stored_parameters(stacks))
    (package / WEIGHTS).parent.mkdir(parents=True)
    raw = [
        _RawTable(name, shape, compression.storage(name, shape), package.parent / table_file(name))
        for name, shape in raw_tables(stacks).shapes.items()
    ]
    tables = {table.path.name: (PER_LAYER_ROWS, table.shape) for table in raw}
    stop = threading.Event()
    stopwatch = _Stopwatch()
    streams = _Streams(package / WEIGHTS, layout, raw, bindings, fitted or {}, stop, progress)
    with ThreadPoolExecutor(1, thread_name_prefix="weights") as pool:
        streaming = pool.submit(streams.run)
        try:
            numbers = _read_whole_numbers(stacks, bindings)
            exported = _export_program(stacks, numbers, layout, package, cache, stopwatch, streaming, progress)
            if on_program is not None:
                on_program(package)
            streamed, seconds = streaming.result()
        except BaseException:
            stop.set()
            raise
    stopwatch.seconds["weights (beside the others)"] = seconds
    digests, signatures, hits = exported
    found = {(package.relative_to(package.parent) / name).as_posix(): digest for name, digest in digests.items()}
    found |= {path.relative_to(package.parent).as_posix(): digest for path, digest in streamed.items()}
    return Exported(found, signatures, tables, stopwatch.seconds, converted=hits[1], cached=hits[0])


def _read_whole_numbers(stacks: Sequence[StackModule], bindings: Mapping[str, Binding]) -> dict[str, NDArray[np.int32]]:
    """By their names in a package, the parameters that are no weights: they stand in the program itself."""
    found = {}
    for stack in stacks:
        for name in stack.whole_numbers:
            numbers = bindings[stack.of.prefix + name].read().to(torch.int32)
            found[stack.of.prefix + name] = np.asarray(numbers.view(stack.get_parameter(name).shape).numpy())
    return found


def _export_program(
    stacks: Sequence[StackModule],
    numbers: Mapping[str, NDArray[np.int32]],
    layout: WeightLayout,
    package: Path,
    cache: FragmentCache,
    stopwatch: "_Stopwatch",
    streaming: Future[tuple[dict[Path, str], float]],
    progress: Progress | None,
) -> tuple[dict[str, str], dict[str, "Signature"], tuple[int, int]]:
    """Convert, link, write; digests, signatures by function, how many fragments came from the cache and were made."""
    with stopwatch("imports"):
        from coreai_recipes.export import package as packages
        from coreai_recipes.export.program import LinkedProgram, fragment_identity, fragments_of, link_program
    with stopwatch("conversion"):
        fragments = fragments_of(stacks)
        made: list[str] = []

        def convert(fragment: Fragment) -> bytes:
            from coreai_recipes.export.convert import convert_fragment

            if streaming.done():
                streaming.result()  # a weight that float16 cannot hold ends the build here, not after all conversions
            made.append(fragment.name)
            return convert_fragment(fragment)

        source = _source_digest(fragments.values())
        keys = {name: fingerprint(source, fragment_identity(f)) for name, f in fragments.items()}
        converted: dict[str, bytes] = {}
        for name, f in fragments.items():
            if progress:
                progress("conversion", len(converted), len(fragments))
            converted[name] = cache.get_or_make(keys[name], partial(convert, f))
        if progress:
            progress("conversion", len(fragments), len(fragments))
    with stopwatch("linking"):

        def link() -> bytes:
            end = layout.end
            linked = link_program(stacks, converted, layout, numbers)
            if layout.end != end:
                raise RuntimeError("the program uses a weight that is no parameter of a stack")
            return linked.to_bytes()

        said = [f"{name} {values.tolist()}" for name, values in numbers.items()]
        recipe = recipe_text(stacks[0].recipe)
        key = fingerprint("program", _linker_digest(), recipe, repr(layout), repr(keys), *said)
        linked = LinkedProgram.from_bytes(cache.get_or_make(key, link))
        packages.write_model(linked.model, package)
    digests = {str(packages.MODEL): sha256(linked.model).hexdigest()}
    digests["Manifest.json"] = sha256((package / "Manifest.json").read_bytes()).hexdigest()
    return digests, linked.signatures, (len(fragments) - len(made), len(made))


@dataclass(frozen=True)
class _RawTable:
    """A table that is written beside the package."""

    name: str
    shape: Shape
    storage: Storage
    path: Path


@dataclass(frozen=True)
class _Streams:
    """What is read from the checkpoint and written on in blocks: weight.bin, and raw tables."""

    weights: Path
    layout: WeightLayout
    tables: Sequence[_RawTable]
    bindings: Mapping[str, Binding]
    fitted: Mapping[str, Fitted]
    stop: threading.Event
    progress: Progress | None

    def run(self) -> tuple[dict[Path, str], float]:
        """The sha256 of each file, and the seconds taken.

        Torch works on one thread meanwhile: a second one would spin beside the conversion, and takes no less time.
        Threads change more often: of a block each does a millisecond's work without the interpreter, and would wait
        five for whoever links.
        """
        threads, interval = torch.get_num_threads(), sys.getswitchinterval()
        torch.set_num_threads(1)
        sys.setswitchinterval(SWITCH_SECONDS)
        started = time.perf_counter()
        try:
            return dict(self._write()), time.perf_counter() - started
        finally:
            torch.set_num_threads(threads)
            sys.setswitchinterval(interval)

    def _write(self) -> Iterator[tuple[Path, str]]:
        total = sum(placed.bytes for placed in self.layout.placed.values())
        encoded = {name: self._encode(name, p.storage, p.shape) for name, p in self.layout.placed.items()}
        writings = {self.weights: write_weights(self.weights, self.layout, encoded)}
        for table in self.tables:
            size, values = table.storage.bytes(table.shape), self._encode(table.name, table.storage, table.shape)
            writings[table.path] = write_table(table.path, table.name, size, values)
            total += size
        done = 0
        for path, writing in writings.items():
            while not self.stop.is_set():
                try:
                    _, size = next(writing)
                except StopIteration as end:
                    yield path, str(end.value)
                    break
                done += size
                if self.progress:
                    self.progress("weights", done, total)

    def _encode(self, name: str, storage: Storage, shape: Shape) -> Iterator[Encoded]:
        """The parts of a parameter; nothing is read before the first is asked for."""
        binding, fitted = self.bindings[name], self.fitted.get(name)
        if fitted is not None:
            yield from fitted.encoded(binding.rewrite.factor)
            return
        yield from storage.encode(binding.blocks(), shape, binding.tensor)


def _source_digest(fragments: Iterable[Fragment]) -> str:
    """A digest of all code that a conversion depends on: this package's, that of other primitives, and versions."""
    root = Path(coreai_recipes.__file__).parent
    own = {
        *(root / "decoder").rglob("*.py"),
        *(root / "primitives").glob("*.py"),
        *(root / "recipe/schema").glob("*.py"),
        root / "logits.py",
        root / "export/convert.py",
        root / "export/fragments.py",
        root / "export/draft_fragments.py",
        root / "export/indices.py",
        root / "storage/parameters.py",
    }
    others = set().union(*(source_files(fragment.module) for fragment in fragments))
    digests = [sha256(path.read_bytes()).hexdigest() for path in sorted(own | others)]
    return fingerprint(*digests, version("torch"), version("coremltools"), platform.python_version())


def _linker_digest() -> str:
    """A digest of the code that makes a program of fragments."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return fingerprint(*(path.read_bytes() for path in files))


class _Stopwatch:
    """Adds up the seconds of named steps: `with stopwatch("linking"): ...`."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def __call__(self, step: str) -> "_Stopwatch":
        self.step = step
        return self

    def __enter__(self) -> None:
        self.started = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.seconds[self.step] = self.seconds.get(self.step, 0.0) + time.perf_counter() - self.started
