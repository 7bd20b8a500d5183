"""The export, in order: convert what the cache does not have, link without a weight, stream the assets."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

from coreai_recipes import aimodel, export, hosts
from coreai_recipes.aimodel.bytecode import splice
from coreai_recipes.aimodel.folder import PROGRAM, write_around
from coreai_recipes.decoder.stack import StackModule
from coreai_recipes.export.cache import FragmentCache
from coreai_recipes.export.converting import code_digest, convert_fragments, fragment_keys
from coreai_recipes.export.functions import fragments_of
from coreai_recipes.export.linked import LinkedProgram, program_key
from coreai_recipes.export.linking import Numbers
from coreai_recipes.export.reporting import Exported, ExportedPackage, Progress, Stopwatch
from coreai_recipes.export.streaming import Encoded, FileStream, HashedFile, Writing, encode_parameter, run_streams
from coreai_recipes.export.tables import read_whole_numbers, table_streams
from coreai_recipes.storage.base import Shape, Storage
from coreai_recipes.storage.chunks import Chunk, chunks_of
from coreai_recipes.storage.fitted import Fitted
from coreai_recipes.storage.memory import return_freed_memory
from coreai_recipes.targets.coreai.weights import replacements
from coreai_recipes.weights.binding import Binding

HERE = Path(__file__).parent
ASSEMBLY = [HERE, *(Path(str(room.__file__)).parent for room in (aimodel, export, hosts))]
# the modules that a conversion depends on
CONVERTER = ("convert", "factors", "recording", "rope", "rows", "shapes")
PINNED = ("coreai-core", "coreai-torch")
PRODUCER = "coreai-recipes"
Encode = Callable[[str, Storage, Shape], Iterator[Encoded]]


def export_package(
    stacks: Sequence[StackModule],
    bindings: Mapping[str, Binding],
    package: Path,
    cache: FragmentCache | None = None,
    progress: Progress | None = None,
    fitted: Mapping[str, Fitted] | None = None,
) -> Exported:
    """Write `stacks`, with the weights of `bindings`, as the .aimodel folder `package`, or as the several beside it
    that their recipe asks for (`storage.chunks`). None of them must exist.

    Parameters of `fitted` were encoded before, all others are now. Peak memory does not grow with the number of layers.
    Raises CheckpointError for a weight that float16 cannot hold.
    """
    cache, fitted, chunks = cache or FragmentCache(None), fitted or {}, chunks_of(stacks)
    stopwatch = Stopwatch()

    def encode(name: str, storage: Storage, shape: Shape) -> Iterator[Encoded]:
        return encode_parameter(bindings[name], storage, shape, fitted.get(name))

    numbers = read_whole_numbers(stacks, bindings)
    linked, hits = _link(stacks, numbers, chunks, cache, stopwatch, progress)
    return_freed_memory()
    streams, written = [], []
    for chunk, program in zip(chunks, linked, strict=True):
        path = chunk.file(package)
        path.mkdir(parents=True)
        streams.append(FileStream(path / PROGRAM, chunk.parameters.bytes, _write(path, chunk, program.model, encode)))
        written.append(ExportedPackage(path, chunk, program.signatures))
    streams += table_streams(stacks, bindings, package, encode)
    streamed, seconds = run_streams(streams, threading.Event(), progress)
    stopwatch.seconds["weights"] = seconds
    digests = {path.relative_to(package.parent).as_posix(): digest for path, digest in streamed.items()}
    for each in written:
        write_around(each.path, bytes.fromhex(digests[f"{each.path.name}/{PROGRAM}"]), _facts(stacks[0].recipe.name))
    return Exported(digests, tuple(written), stopwatch.seconds, converted=hits[1], cached=hits[0])


def _facts(name: str) -> dict[str, object]:
    return {"producer": f"coreai-core {version('coreai-core')}", "author": PRODUCER, "description": name}


def _write(path: Path, chunk: Chunk, program: bytes, encode: Encode) -> Writing:
    """main.mlirb: the program with its weights in place of the stand-ins."""
    parameters = chunk.parameters
    found: list[tuple[str, int]] = []

    def of(name: str) -> Iterator[Encoded]:
        shape = parameters.shapes[name]
        return encode(name, parameters.compression.storage(name, shape), shape)

    real = replacements(parameters, of, lambda name, size: found.append((name, size)))
    with HashedFile(path / PROGRAM) as file:
        for block in splice(program, lambda _, content: real.get(bytes(content))):
            file.write(block)
            yield from found
            found.clear()
        yield from found
    return file.digest.hexdigest()


def _link(
    stacks: Sequence[StackModule],
    numbers: Numbers,
    chunks: Sequence[Chunk],
    cache: FragmentCache,
    stopwatch: Stopwatch,
    progress: Progress | None,
) -> tuple[list[LinkedProgram], tuple[int, int]]:
    """Each package's program; how many fragments came from the cache and were made."""
    with stopwatch("imports"):
        from coreai_recipes.targets.coreai.convert import convert_fragment
        from coreai_recipes.targets.coreai.program import link_program
    with stopwatch("conversion"):
        fragments = fragments_of(stacks)
        keys = fragment_keys(fragments, code_digest((HERE / f"{name}.py" for name in CONVERTER), *PINNED))
        converted, made = convert_fragments(
            fragments, keys, lambda _: None, lambda fragment, _: convert_fragment(fragment), cache, progress
        )
    linked = []
    with stopwatch("linking"):
        for chunk in chunks:

            def link(chunk: Chunk = chunk) -> bytes:
                return LinkedProgram(*link_program(stacks, chunks, chunk, fragments, converted, numbers)).to_bytes()

            key = program_key("coreai", ASSEMBLY, stacks, chunk, numbers, repr(keys))
            linked.append(LinkedProgram.from_bytes(cache.get_or_make(key, link)))
    return linked, (len(fragments) - made, made)
