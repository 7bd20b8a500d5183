"""The export, in order: convert what the cache does not have, link, stream the weights, write the package."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from coreai_recipes import export, hosts
from coreai_recipes.decoder.model import table_file
from coreai_recipes.decoder.stack import StackModule
from coreai_recipes.export.cache import FragmentCache, fingerprint
from coreai_recipes.export.converting import code_digest, convert_fragments, fragment_keys
from coreai_recipes.export.fragments import Fragment
from coreai_recipes.export.functions import fragments_of
from coreai_recipes.export.linking import Numbers
from coreai_recipes.export.reporting import Exported, Progress, Signature, Stopwatch
from coreai_recipes.export.streaming import Encoded, FileStream, encode_parameter, run_streams, write_table
from coreai_recipes.recipe import recipe_text
from coreai_recipes.storage.base import Shape, Storage
from coreai_recipes.storage.compression import Compression
from coreai_recipes.storage.fitted import Fitted
from coreai_recipes.storage.layout import FILE as WEIGHTS
from coreai_recipes.storage.layout import WeightLayout
from coreai_recipes.storage.parameters import raw_tables, stored_parameters
from coreai_recipes.targets.coreml.weight_file import write_weights
from coreai_recipes.weights.binding import Binding

HERE = Path(__file__).parent
ASSEMBLY = [Path(str(room.__file__)).parent for room in (export, hosts)]
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
    """Write `stacks`, with the weights of `bindings`, as the .mlpackage folder `package`, which must not exist.

    `on_program` is called with the package when its program is written, while most of the weights are still to come.
    Parameters of `fitted` were encoded before, all others are now.

    The weights stream on a second thread while the fragments are converted: neither needs the other. Peak memory does
    not grow with the number of layers. Raises CheckpointError for a weight that float16 cannot hold.
    """
    cache, fitted = cache or FragmentCache(None), fitted or {}
    compression, layout = Compression.of(stacks[0].recipe), WeightLayout.of(stored_parameters(stacks))
    (package / WEIGHTS).parent.mkdir(parents=True)

    def encode(name: str, storage: Storage, shape: Shape) -> Iterator[Encoded]:
        return encode_parameter(bindings[name], storage, shape, fitted.get(name))

    encoded = {name: encode(name, placed.storage, placed.shape) for name, placed in layout.placed.items()}
    streams = [FileStream(package / WEIGHTS, layout.bytes, write_weights(package / WEIGHTS, layout, encoded))]
    for name, shape in raw_tables(stacks).shapes.items():
        storage, path = compression.storage(name, shape), package.parent / table_file(name)
        values, size = encode(name, storage, shape), storage.bytes(shape)
        streams.append(FileStream(path, size, write_table(path, name, size, values)))
    stop = threading.Event()
    stopwatch = Stopwatch()
    with ThreadPoolExecutor(1, thread_name_prefix="weights") as pool:
        streaming = pool.submit(run_streams, streams, stop, progress)
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
    return Exported(found, signatures, stopwatch.seconds, converted=hits[1], cached=hits[0])


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
    numbers: Numbers,
    layout: WeightLayout,
    package: Path,
    cache: FragmentCache,
    stopwatch: Stopwatch,
    streaming: Future[tuple[dict[Path, str], float]],
    progress: Progress | None,
) -> tuple[dict[str, str], dict[str, Signature], tuple[int, int]]:
    """Convert, link, write; digests, signatures by function, how many fragments came from the cache and were made."""
    with stopwatch("imports"):
        from coreai_recipes.targets.coreml import mlpackage
        from coreai_recipes.targets.coreml.program import LinkedProgram, link_program
    with stopwatch("conversion"):

        def convert(fragment: Fragment, traced: torch.jit.ScriptModule) -> bytes:
            from coreai_recipes.targets.coreml.convert import convert_fragment

            if streaming.done():
                streaming.result()  # a weight that float16 cannot hold ends the build here, not after all conversions
            return convert_fragment(fragment, traced)

        fragments = fragments_of(stacks)
        keys = fragment_keys(fragments, code_digest((HERE / f"{name}.py" for name in CONVERTER), "coremltools"))
        converted, made = convert_fragments(fragments, keys, convert, cache, progress)
    with stopwatch("linking"):

        def link() -> bytes:
            end = layout.end
            linked = link_program(stacks, converted, layout, numbers)
            if layout.end != end:
                raise RuntimeError("the program uses a weight that is no parameter of a stack")
            return linked.to_bytes()

        said = [f"{name} {values.tolist()}" for name, values in numbers.items()]
        linker, recipe = (
            code_digest(sorted({*HERE.glob("*.py"), *(file for folder in ASSEMBLY for file in folder.glob("*.py"))})),
            recipe_text(stacks[0].recipe),
        )
        key = fingerprint("program", linker, recipe, repr(layout), repr(keys), *said)
        linked = LinkedProgram.from_bytes(cache.get_or_make(key, link))
        mlpackage.write_model(linked.model, package)
    digests = {str(mlpackage.MODEL): sha256(linked.model).hexdigest()}
    digests["Manifest.json"] = sha256((package / "Manifest.json").read_bytes()).hexdigest()
    return digests, linked.signatures, (len(fragments) - made, made)
