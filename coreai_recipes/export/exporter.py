"""The export, in order: convert what the cache does not have, link, stream the weights, write the package."""

import platform
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

import coreai_recipes
from coreai_recipes.checkpoint.binding import Binding
from coreai_recipes.checkpoint.range_check import to_float16
from coreai_recipes.export.cache import FragmentCache, fingerprint
from coreai_recipes.export.fragments import Fragment, source_files
from coreai_recipes.export.weights import WeightLayout, write_weights
from coreai_recipes.model import Decoder

if TYPE_CHECKING:
    from coreai_recipes.export.package import Signature

# called with what is being done, how much of it is done, and how much there is
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Exported:
    """What an export wrote: digests by path within the package, the functions' signatures, seconds by step."""

    digests: dict[str, str]
    signatures: dict[str, "Signature"]
    seconds: dict[str, float]
    converted: int
    cached: int


def export_package(
    decoder: Decoder,
    bindings: Mapping[str, Binding],
    package: Path,
    cache: FragmentCache | None = None,
    progress: Progress | None = None,
) -> Exported:
    """Write `decoder`, with the weights of `bindings`, as the .mlpackage folder `package`, which must not exist.

    The weights stream on a second thread while the fragments are converted: neither needs the other. Peak memory does
    not grow with the number of layers. Raises CheckpointError for a weight that float16 cannot hold.
    """
    from coreai_recipes.export.package import WEIGHTS

    cache = cache or FragmentCache(None)
    layout = WeightLayout()
    for name, parameter in decoder.named_parameters():
        layout.place(name, tuple(parameter.shape))
    (package / WEIGHTS).parent.mkdir(parents=True)
    stop = threading.Event()
    stopwatch = _Stopwatch()
    with ThreadPoolExecutor(1, thread_name_prefix="weights") as pool:
        streaming = pool.submit(_stream, package / WEIGHTS, layout, bindings, stop, progress)
        try:
            exported = _export_program(decoder, layout, package, cache, stopwatch, streaming)
            digest, streamed = streaming.result()
        except BaseException:
            stop.set()
            raise
    stopwatch.seconds["weights (beside the others)"] = streamed
    digests, signatures, hits = exported
    return Exported(digests | {str(WEIGHTS): digest}, signatures, stopwatch.seconds, converted=hits[1], cached=hits[0])


def _export_program(
    decoder: Decoder,
    layout: WeightLayout,
    package: Path,
    cache: FragmentCache,
    stopwatch: "_Stopwatch",
    streaming: Future[tuple[str, float]],
) -> tuple[dict[str, str], dict[str, "Signature"], tuple[int, int]]:
    """Convert, link, write; digests, signatures by function, how many fragments came from the cache and were made."""
    with stopwatch("imports"):
        from coreai_recipes.export import package as packages
        from coreai_recipes.export.program import fragment_identity, fragments_of, link_program
    with stopwatch("conversion"):
        fragments = fragments_of(decoder)
        made: list[str] = []

        def convert(fragment: Fragment) -> bytes:
            from coreai_recipes.export.convert import convert_fragment

            if streaming.done():
                streaming.result()  # a weight that float16 cannot hold ends the build here, not after all conversions
            made.append(fragment.name)
            return convert_fragment(fragment)

        source = _source_digest(fragments.values())
        converted = {
            name: cache.get_or_make(fingerprint(source, fragment_identity(f)), lambda f=f: convert(f))  # type: ignore[misc]
            for name, f in fragments.items()
        }
    with stopwatch("linking"):
        end = layout.end
        linked = link_program(decoder, converted, layout)
        if layout.end != end:
            raise RuntimeError("the program uses a weight that is no parameter of the decoder")
        model = packages.write_model(linked.model, package)
    digests = {str(packages.MODEL): sha256(model).hexdigest()}
    digests["Manifest.json"] = sha256((package / "Manifest.json").read_bytes()).hexdigest()
    return digests, linked.signatures, (len(fragments) - len(made), len(made))


def _stream(
    path: Path,
    layout: WeightLayout,
    bindings: Mapping[str, Binding],
    stop: threading.Event,
    progress: Progress | None,
) -> tuple[str, float]:
    """Write weight.bin; its sha256 and the seconds taken.

    Torch works on one thread meanwhile: a second one would spin beside the conversion, and takes no less time for it.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _write_blocks(path, layout, bindings, stop, progress)
    finally:
        torch.set_num_threads(threads)


def _write_blocks(
    path: Path,
    layout: WeightLayout,
    bindings: Mapping[str, Binding],
    stop: threading.Event,
    progress: Progress | None,
) -> tuple[str, float]:
    started, done, total = time.perf_counter(), 0, sum(blob.size for blob in layout.blobs.values())
    writing = write_weights(path, layout, {name: _float16_blocks(bindings[name]) for name in layout.blobs})
    while not stop.is_set():
        try:
            _, size = next(writing)
        except StopIteration as end:
            return str(end.value), time.perf_counter() - started
        done += size
        if progress:
            progress("weights", done, total)
    return "", 0.0


def _float16_blocks(binding: Binding) -> Iterator[NDArray[np.float16]]:
    buffer = torch.empty(0, dtype=torch.float16)
    for block in binding.blocks():
        if buffer.numel() < block.numel():
            buffer = torch.empty(block.numel(), dtype=torch.float16)
        yield to_float16(block, binding.tensor, buffer[: block.numel()]).numpy()


def _source_digest(fragments: Iterable[Fragment]) -> str:
    """A digest of all code that a conversion depends on: this package's, that of other primitives, and versions."""
    root = Path(coreai_recipes.__file__).parent
    own = {
        *(root / "primitives").glob("*.py"),
        root / "model.py",
        root / "export/convert.py",
        root / "export/fragments.py",
    }
    others = set().union(*(source_files(fragment.module) for fragment in fragments))
    digests = [sha256(path.read_bytes()).hexdigest() for path in sorted(own | others)]
    return fingerprint(*digests, version("torch"), version("coremltools"), platform.python_version())


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
