"""The export, in order: convert what the cache does not have, link, stream the weights, write the packages."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import torch

from coreai_recipes import export, hosts
from coreai_recipes.decoder.stack import StackModule
from coreai_recipes.export.cache import FragmentCache
from coreai_recipes.export.converting import code_digest, convert_fragments, fragment_keys, trace
from coreai_recipes.export.fragments import Fragment
from coreai_recipes.export.functions import fragments_of
from coreai_recipes.export.linked import LinkedProgram, program_key
from coreai_recipes.export.linking import Numbers
from coreai_recipes.export.reporting import Exported, ExportedPackage, Progress, Stopwatch
from coreai_recipes.export.streaming import Encoded, FileStream, encode_parameter, run_streams
from coreai_recipes.export.tables import read_whole_numbers, table_streams
from coreai_recipes.storage.base import Shape, Storage
from coreai_recipes.storage.chunks import Chunk, chunks_of
from coreai_recipes.storage.fitted import Fitted
from coreai_recipes.storage.layout import FILE as WEIGHTS
from coreai_recipes.storage.layout import WeightLayout
from coreai_recipes.storage.memory import return_freed_memory
from coreai_recipes.targets.coreml.weight_file import write_weights
from coreai_recipes.weights.binding import Binding

HERE = Path(__file__).parent
ASSEMBLY = [HERE, *(Path(str(room.__file__)).parent for room in (export, hosts))]
CONVERTER = ("convert", "indices", "mil", "version")  # the modules that a conversion depends on


def export_package(
    stacks: Sequence[StackModule],
    bindings: Mapping[str, Binding],
    package: Path,
    cache: FragmentCache | None = None,
    progress: Progress | None = None,
    on_program: Callable[[Path], object] | None = None,
    fitted: Mapping[str, Fitted] | None = None,
) -> Exported:
    """Write `stacks`, with the weights of `bindings`, as the .mlpackage folder `package`, or as the several beside it
    that their recipe asks for (`storage.chunks`). None of them must exist.

    `on_program` is called with each package when its program is written, while most of the weights are still to come.
    Parameters of `fitted` were encoded before, all others are now.

    The weights stream on a second thread while the fragments are converted: neither needs the other. Peak memory does
    not grow with the number of layers. Raises CheckpointError for a weight that float16 cannot hold.
    """
    cache, fitted, chunks = cache or FragmentCache(None), fitted or {}, chunks_of(stacks)
    planned = [_Planned(chunk.file(package), chunk, WeightLayout.of(chunk.parameters)) for chunk in chunks]

    def encode(name: str, storage: Storage, shape: Shape) -> Iterator[Encoded]:
        return encode_parameter(bindings[name], storage, shape, fitted.get(name))

    streams = []
    for path, _, layout in planned:
        (path / WEIGHTS).parent.mkdir(parents=True)
        encoded = {name: encode(name, placed.storage, placed.shape) for name, placed in layout.placed.items()}
        streams.append(FileStream(path / WEIGHTS, layout.bytes, write_weights(path / WEIGHTS, layout, encoded)))
    streams += table_streams(stacks, bindings, package, encode)
    stop = threading.Event()
    stopwatch = Stopwatch()
    with ThreadPoolExecutor(1, thread_name_prefix="weights") as pool:
        streaming = pool.submit(run_streams, streams, stop, progress)
        try:
            numbers = read_whole_numbers(stacks, bindings)
            written, digests, hits = _export_programs(stacks, numbers, planned, cache, stopwatch, streaming, progress)
            return_freed_memory()  # the linker's, before the program is read once more: there a build is at its highest
            if on_program is not None:
                for each in written:
                    on_program(each.path)
            streamed, seconds = streaming.result()
        except BaseException:
            stop.set()
            raise
    stopwatch.seconds["weights (beside the others)"] = seconds
    digests |= {path.relative_to(package.parent).as_posix(): digest for path, digest in streamed.items()}
    return Exported(digests, tuple(written), stopwatch.seconds, converted=hits[1], cached=hits[0])


class _Planned(NamedTuple):
    """A package that is to be written."""

    path: Path
    chunk: Chunk
    layout: WeightLayout


def _export_programs(
    stacks: Sequence[StackModule],
    numbers: Numbers,
    planned: Sequence[_Planned],
    cache: FragmentCache,
    stopwatch: Stopwatch,
    streaming: Future[tuple[dict[Path, str], float]],
    progress: Progress | None,
) -> tuple[list[ExportedPackage], dict[str, str], tuple[int, int]]:
    """Convert, link, write; the packages, digests, how many fragments came from the cache and were made."""
    with stopwatch("imports"):
        from coreai_recipes.targets.coreml import mlpackage
        from coreai_recipes.targets.coreml.program import link_program
    chunks = [each.chunk for each in planned]
    with stopwatch("conversion"):

        def convert(fragment: Fragment, traced: torch.jit.ScriptModule) -> bytes:
            from coreai_recipes.targets.coreml.convert import convert_fragment

            if streaming.done():
                streaming.result()  # a weight that float16 cannot hold ends the build here, not after all conversions
            return convert_fragment(fragment, traced)

        fragments = fragments_of(stacks)
        keys = fragment_keys(fragments, code_digest((HERE / f"{name}.py" for name in CONVERTER), "coremltools"))
        converted, made = convert_fragments(fragments, keys, trace, convert, cache, progress)
    written, digests = [], dict[str, str]()
    for path, chunk, layout in planned:
        with stopwatch("linking"):

            def link(chunk: Chunk = chunk, layout: WeightLayout = layout) -> bytes:
                end = layout.end
                linked = link_program(stacks, chunks, chunk, converted, layout, numbers)
                if layout.end != end:
                    raise RuntimeError("the program uses a weight that is not in its package")
                return linked.to_bytes()

            key = program_key("coreml", ASSEMBLY, stacks, chunk, numbers, repr(layout), repr(keys))
            linked = LinkedProgram.from_bytes(cache.get_or_make(key, link))
            mlpackage.write_model(linked.model, path)
        own = {str(mlpackage.MODEL): sha256(linked.model).hexdigest()}
        own["Manifest.json"] = sha256((path / "Manifest.json").read_bytes()).hexdigest()
        digests |= {f"{path.name}/{name}": digest for name, digest in own.items()}
        written.append(ExportedPackage(path, chunk, linked.signatures))
    return written, digests, (len(fragments) - made, made)
