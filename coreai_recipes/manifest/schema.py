"""manifest.json of format 2, typed. Keys that it does not name are ignored: a later build of this format may add some.

Format 1 had no places of kinds in a state; it is known, so that a build may replace such a bundle, and not read.

What cannot be is refused here; what contradicts the recipe or the package, where those are known.
"""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from coreai_recipes.manifest.adapters import Adapters
from coreai_recipes.manifest.fields import (
    AdapterName,
    Count,
    Described,
    Digest,
    File,
    FileName,
    Name,
    OpenShape,
    Shape,
    Size,
    Text,
)

FORMATS = (1, 2)  # every format so far
FORMAT = FORMATS[-1]


class Sealed(Described):
    """What tells a bundle from any other folder: its format, its name, and the files that a build wrote."""

    format: Literal[1, 2]
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
    recipe_sha256: Digest
    files: Annotated[dict[FileName, File], Field(min_length=1, max_length=100_000)]

    @model_validator(mode="after")
    def _lists_its_recipe(self) -> "Sealed":
        recipe = self.files.get("recipe.yaml")
        if recipe is None or recipe.sha256 != self.recipe_sha256:
            raise ValueError("`files` must list recipe.yaml with the digest that recipe_sha256 says")
        return self


class Port(Described):
    """An input or an output of a function; a size is -1 where each call decides it."""

    dtype: Literal["int32", "uint16", "float16", "float32"]
    shape: OpenShape

    @property
    def words(self) -> str:
        return f"{self.dtype} {list(self.shape)}"


class Function(Described):
    """A function of a package. `query` is the number of tokens that a call takes; `steps` how many it drafts, each from
    the one before it, null where that is no more than one; `cost` what a call computes: flops, bytes of weights read,
    of states read and written, of all results, and of these as the engine pads them."""

    query: Count
    steps: Count | None = None
    inputs: dict[Name, Port]
    outputs: dict[Name, Port]
    cost: dict[str, Size] | None = None


class Program(Described):
    """A package that can be run, with the layers that are in it."""

    file: FileName
    role: Literal["all", "embed", "layers", "head"]
    layers: tuple[Size, Size]
    functions: Annotated[dict[Name, Function], Field(min_length=1)]


class Logits(Described):
    """How logits lie: `pieces` of `columns`, of which the first `vocab_size` are tokens'."""

    pieces: Count
    columns: Count


class Scales(Described):
    """What integers of a table are to be multiplied by: from byte `offset` of its file on, those of one row behind
    those of the other, one for each `block` of a row."""

    dtype: Literal["float16"]
    block: Count
    offset: Size


BITS = {"float16": 16, "int8": 8, "int4": 4}


class Table(Described):
    """Rows that a host looks up by token and hands to the functions as `input`."""

    file: FileName
    role: Literal["table"]
    dtype: Literal["float16", "int8", "int4"]
    shape: tuple[Count, Count]
    row_bytes: Count
    scales: Scales | None = None
    input: Name

    def problems(self) -> Iterator[str]:
        """Everything in which it contradicts itself."""
        rows, columns = self.shape
        if 8 * self.row_bytes != BITS[self.dtype] * columns:
            yield f"row_bytes: {self.row_bytes} is not what {columns} columns of {self.dtype} take"
        if (self.scales is None) != (self.dtype == "float16"):
            yield f"scales: {'missing' if self.scales is None else 'there'}, of rows of {self.dtype}"
        elif self.scales is not None:
            if columns % self.scales.block:
                yield f"scales.block: {self.scales.block} does not divide {columns} columns"
            if self.scales.offset != rows * self.row_bytes:
                yield f"scales.offset: {self.scales.offset} is not {rows} x {self.row_bytes}"


class Places(Described):
    """Where the layers of a kind lie in a state: from its `first` layer on, `count` of them.

    Of a state with keys and values, layer l has its keys at place 2 l of the first axis and its values at 2 l + 1.
    `window` is None for a cache that forgets nothing; else position p is in row p mod `rows`.
    """

    first: Size
    count: Count
    rows: Count
    window: Count | None


class State(Described):
    """What the functions keep between calls: keys (k), values (v) or both (kv), (layers, KV heads, rows, head_dim)."""

    dtype: Literal["float16"]
    shape: Shape
    role: Literal["kv", "k", "v"]
    kinds: Annotated[dict[Name, Places], Field(min_length=1)]

    @property
    def layers(self) -> int:
        """How many layers it has room for."""
        return self.shape[0] // 2 if self.role == "kv" else self.shape[0]

    def problems(self) -> Iterator[str]:
        """Everything in which it contradicts itself."""
        if len(self.shape) != 4 or (self.role == "kv" and self.shape[0] % 2):
            yield f"{list(self.shape)} is not (layers, KV heads, rows, head_dim) of {self.role}"
            return
        end = 0
        for kind, places in sorted(self.kinds.items(), key=lambda item: item[1].first):
            if places.rows != self.shape[2]:
                yield f"{list(self.shape)} does not have {places.rows} rows"
            if places.window is not None and places.window > places.rows:
                yield f"{places.rows} rows do not hold a window of {places.window}"
            if places.first != end:
                yield f"the layers of {kind} begin at {places.first} and must at {end}"
            end = places.first + places.count
        if end != self.layers:
            yield f"{list(self.shape)} does not have {end} layers of {self.role}"


class Carried(Described):
    """A tensor that a function takes as NAME and gives again as new_NAME, for the next call: zeros at position 0.

    It holds the `count` layers of a `kind` on its first axis: a `convolution`'s inputs at its last positions, or the
    state of a `recurrence`. With a rollback of `none` it belongs to one position, and a host goes back by keeping it.
    With `commit` it is that of the last commit, and `rows` hold what each position since has added.
    """

    dtype: Literal["float16"]
    shape: Shape
    role: Literal["convolution", "recurrence", "rows"]
    rollback: Literal["none", "commit"]
    kind: Name
    count: Count

    def problems(self) -> Iterator[str]:
        """Everything in which it contradicts itself."""
        if self.shape[:1] != (self.count,):
            yield f"{list(self.shape)} does not have {self.count} layers"


class CarriedCache(State):
    """Keys and values that the host keeps: a function takes them whole as NAME and gives the rows of its tokens as
    new_NAME, which the host writes at their positions. It goes back as a state does: rollback by `rows`."""

    rollback: Literal["rows"]


class Origin(Described):
    """The checkpoint that a bundle was built from: its hub id with its commit or its base name, and its weight files.

    `bytes` and `config_sha256` are missing in what was built before they were written down.
    """

    source: Text
    sha256: dict[FileName, Digest]
    bytes: dict[FileName, Size] | None = None
    config_sha256: Digest | None = None


class AdapterOrigin(Described):
    """An adapter of the recipe, merged or not: its hub id with its commit or its base name, and its files."""

    name: AdapterName
    source: Text
    sha256: dict[FileName, Digest]


class Checkpoint(Origin):
    """`draft` is where a draft's weights came from, `adapters` where what was merged into the model's did, and what is
    handed in."""

    draft: Origin | None = None
    adapters: tuple[AdapterOrigin, ...] | None = None


class Manifest(Sealed):
    """All that a host needs: docs/bundle.md says of each key what it means and what a host does with it."""

    format: Literal[2]
    checkpoint: Checkpoint
    versions: dict[str, str]
    context: Count
    vocab_size: Count
    # of another project, whose functions these are
    host: Literal["anemll", "coreai-models", "coreai-models-dynamic"] | None = None
    logits: Logits
    rotary: dict[str, str] | None = None  # what a rotary was fixed to at build time, by kind
    packages: Annotated[tuple[Annotated[Program | Table, Field(discriminator="role")], ...], Field(max_length=1000)]
    states: dict[Name, State]
    carried: dict[Name, Annotated[Carried | CarriedCache, Field(discriminator="role")]] | None = None
    adapters: Adapters | None = None  # those that are not merged
    eos_token_ids: Annotated[tuple[Annotated[int, Field(ge=0, lt=1 << 31)], ...], Field(max_length=100_000)]
    tokens: FileName | None = None  # what the tokenizer is beyond tokenizer.json; docs/tokens.md
    residual_scale: dict[Name, float | str] | None = None  # where it was measured: the scale, and its figures

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> "Manifest":
        problems = []
        for index, package in enumerate(self.packages):
            inside = [name for name in self.files if name == package.file or name.startswith(f"{package.file}/")]
            if not inside:
                problems.append(f"packages.{index}.file: {package.file!r} is not among `files`")
            if isinstance(package, Table):
                problems += [f"packages.{index}.{problem}" for problem in package.problems()]
        if not self.programs:
            problems.append("packages: none of them is a program")
        problems += self._broken_links()
        problems += [f"states.{name}: {problem}" for name, state in self.states.items() for problem in state.problems()]
        for name, carried in (self.carried or {}).items():
            problems += [f"carried.{name}: {problem}" for problem in carried.problems()]
        if self.adapters is not None:
            problems += [f"adapters.{problem}" for problem in self.adapters.problems(self.files)]
        if problems:
            raise ValueError("\n".join(problems))
        return self

    @property
    def host_caches(self) -> dict[str, CarriedCache]:
        """The keys and values that the host keeps."""
        return {name: kept for name, kept in (self.carried or {}).items() if isinstance(kept, CarriedCache)}

    @property
    def buffers(self) -> dict[str, Carried]:
        """The rows since the last commit."""
        carried = (self.carried or {}).items()
        return {name: kept for name, kept in carried if isinstance(kept, Carried) and kept.role == "rows"}

    @property
    def places(self) -> dict[str, Places]:
        """Where each kind's keys and values lie, in states or with the host: of two tensors, both say the same."""
        caches = (*self.states.values(), *self.host_caches.values())
        return {kind: places for cache in caches for kind, places in cache.kinds.items()}

    @property
    def package_format(self) -> Literal["coreml", "coreai"]:
        """That of its programs, which their names end in."""
        return "coreai" if all(program.file.endswith(".aimodel") for program in self.programs) else "coreml"

    @property
    def programs(self) -> tuple[Program, ...]:
        """The packages that can be run, in running order."""
        return tuple(package for package in self.packages if isinstance(package, Program))

    def chain(self, name: str) -> tuple[Function, ...]:
        """The function in each program that has it, in running order."""
        return tuple(program.functions[name] for program in self.programs if name in program.functions)

    @property
    def functions(self) -> dict[str, Function]:
        """As a host sees them: of a chain, the inputs that no earlier link gives, the outputs that no later takes."""
        return {name: joined(self.chain(name)) for program in self.programs for name in program.functions}

    def _broken_links(self) -> Iterator[str]:
        """What the programs of a chain say of one port, where they do not say the same, and of the tokens of a call."""
        for name in dict.fromkeys(name for program in self.programs for name in program.functions):
            said: dict[str, Port] = {}
            chain = self.chain(name)
            if len({function.query for function in chain}) > 1:
                yield f"packages: functions.{name}: query is {' and '.join(str(each.query) for each in chain)}"
            for function in chain:
                for port, kind in (*function.inputs.items(), *function.outputs.items()):
                    if said.setdefault(port, kind) != kind:
                        yield f"packages: functions.{name}: {port} is {said[port].words} and {kind.words}"

    @property
    def tables(self) -> tuple[Table, ...]:
        return tuple(package for package in self.packages if isinstance(package, Table))


def joined(chain: tuple[Function, ...]) -> Function:
    """A chain as one function."""
    if len(chain) == 1:
        return chain[0]
    inputs: dict[str, Port] = {}
    outputs: dict[str, Port] = {}
    handed: set[str] = set()
    for function in chain:
        handed |= function.inputs.keys() & outputs.keys()
        inputs |= {port: kind for port, kind in function.inputs.items() if port not in outputs}
        outputs |= function.outputs
    handed -= chain[-1].outputs.keys()
    left = {port: kind for port, kind in outputs.items() if port not in handed}
    return Function(query=chain[0].query, steps=chain[-1].steps, inputs=inputs, outputs=left)


Decibels = Annotated[float, Field(strict=False)] | Literal["inf", "-inf"] | None


class Stage(Described):
    """What a stage of verify found; `passed` is None when it did not run."""

    name: Annotated[str, Field(min_length=1, max_length=200)]
    passed: bool | None
    psnr_db: Decibels
    snr_min_db: Decibels
    floor_db: Decibels
    detail: dict[str, Any]


class Report(Described):
    """report.json: no stages where nothing was verified."""

    passed: bool
    stages: Annotated[tuple[Stage, ...], Field(max_length=100)]
