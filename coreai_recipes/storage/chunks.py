"""The packages that together hold a model: which layers and which parameters are in each, by shapes alone.

A model is cut between layers, and before its head. Layers that read the cache of another are in its package, unless its
keys and values are handed on; a draft is where the caches lie that it reads. The table is in the first package, and a
tied one once more in the package of the head where that is another.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from math import inf
from pathlib import Path

from coreai_recipes.aimodel.folder import PROGRAM, SUFFIX, places_in
from coreai_recipes.decoder.draft import Draft
from coreai_recipes.decoder.low_rank import LowRankSpec, low_rank_specs
from coreai_recipes.decoder.model import Decoder, exported_form
from coreai_recipes.decoder.stack import StackModule
from coreai_recipes.decoder.stacks import build_stacks
from coreai_recipes.decoder.states import (
    CarriedSpec,
    RowsSpec,
    State,
    StateSpec,
    carried_specs,
    owner_of,
    places_of,
    rows_specs,
    slots_of,
    state_specs,
    states_of,
)
from coreai_recipes.errors import RecipeError
from coreai_recipes.recipe.schema import Recipe
from coreai_recipes.recipe.schema.export import ChunkSizes
from coreai_recipes.storage.base import RECORD_BYTES, align
from coreai_recipes.storage.compression import Parameters
from coreai_recipes.storage.layout import FILE, WeightLayout
from coreai_recipes.storage.packed import AssetParts, PackedParts
from coreai_recipes.storage.parameters import EMBEDDING, head_blocks, stored_parameters

PROGRAM_BYTES = 10_000_000  # more than a package has beside its weights
AUTO_BYTES = 950_000_000 - PROGRAM_BYTES  # of weights: a package stays below the 0.95 GB of rule `pkg-size`


@dataclass(frozen=True)
class Chunk:
    """One of `count` packages, from 1 on: the layers from `first` to before `end`, and what else is in it."""

    recipe: Recipe
    number: int
    count: int
    first: int
    end: int
    embeds: bool
    answers: bool
    drafts: bool
    parameters: Parameters

    @property
    def part(self) -> slice:
        """Its layers among the model's."""
        return slice(self.first, self.end)

    @property
    def role(self) -> str:
        """As a manifest has it."""
        return "all" if self.count == 1 else "layers" if self.first < self.end else "head"

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of its layers, in the order of first use."""
        return tuple(dict.fromkeys(self.recipe.model.layer_kinds[self.part]))

    @cached_property
    def states(self) -> dict[str, StateSpec]:
        """Those that its layers own, by kind."""
        return state_specs(self.recipe, part=self.part, behind=self._behind)

    @cached_property
    def carried(self) -> dict[str, CarriedSpec]:
        """What its layers carry from call to call, by name."""
        return carried_specs(self.recipe, self.part, self._behind)

    @cached_property
    def buffers(self) -> dict[str, RowsSpec]:
        """The rows that its layers keep since the last commit, by name, where the recipe has a buffer."""
        return rows_specs(self.recipe, self.part, self._behind)

    @cached_property
    def low_rank(self) -> tuple[LowRankSpec, ...]:
        """What its functions take of adapters that are not merged."""
        return low_rank_specs(self.recipe, self.part, self._behind)

    @property
    def _behind(self) -> str:
        """How the names of what it keeps end."""
        return f"_{self.number}" if self.count > 1 else ""

    def place(self, layer: int) -> int:
        """Of a layer of the model, in what those of its kind carry."""
        return places_of(self.recipe, self.part)[layer - self.first]

    def slot(self, layer: int) -> int:
        """The place in these states of a layer of the model."""
        found = self._slots[layer - self.first]
        if found is None:
            raise ValueError(f"the cache that layer {layer} reads is in another package")
        return found

    @cached_property
    def _slots(self) -> list[int | None]:
        return slots_of(self.recipe, self.states, self.part)

    @cached_property
    def handed(self) -> dict[int, int]:
        """Its layers that read a cache of a package before it, and the layers of the model whose caches these are."""
        return {
            reader: owner for owner, reader in shared_layers(self.recipe) if owner < self.first <= reader < self.end
        }

    @cached_property
    def read(self) -> dict[int, int]:
        """Its layers that are given another's keys and values as a call leaves them, and the layers of the model whose
        these are: `handed` ones, and where no state holds them those of its own layers too."""
        if not self.recipe.export.is_functional:
            return self.handed
        return {reader: owner for owner, reader in shared_layers(self.recipe) if self.first <= reader < self.end}

    def file(self, package: Path) -> Path:
        """Where it lies: the only package at `package`, one of several beside it, by its number."""
        return package if self.count == 1 else package.with_stem(f"{package.stem}_{self.number}")


def shared_layers(recipe: Recipe) -> Iterator[tuple[int, int]]:
    """Each layer that reads another's cache, behind the one whose that is."""
    kinds = recipe.model.layer_kinds
    for index, kind in enumerate(kinds):
        owner = owner_of(recipe, kind)
        if owner != kind:
            yield max(at for at in range(index) if kinds[at] == owner), index


def chunks_of(stacks: Sequence[StackModule]) -> tuple[Chunk, ...]:
    """The packages of a recipe's stacks, in running order. Raises RecipeError where they cannot be as it asks."""
    return _Cutting(stacks).chunks()


def packages_of(recipe: Recipe, package: Path) -> tuple[Path, ...]:
    """The packages of a recipe that was built at `package`."""
    if recipe.export.chunks == 1:
        return (package,)
    return tuple(chunk.file(package) for chunk in chunks_of(build_stacks(recipe, exported_form(recipe))))


def carried_of_packages(recipe: Recipe) -> dict[str, CarriedSpec]:
    """The tensors by name that all packages of a recipe carry from call to call."""
    if recipe.export.chunks == 1:
        return carried_specs(recipe)
    chunks = chunks_of(build_stacks(recipe, exported_form(recipe)))
    return {name: spec for chunk in chunks for name, spec in chunk.carried.items()}


def buffers_of_packages(recipe: Recipe) -> dict[str, RowsSpec]:
    """The buffers by name of all packages of a recipe."""
    if recipe.export.chunks == 1 or not recipe.export.buffer:
        return rows_specs(recipe)
    chunks = chunks_of(build_stacks(recipe, exported_form(recipe)))
    return {name: spec for chunk in chunks for name, spec in chunk.buffers.items()}


def low_rank_of_packages(recipe: Recipe) -> tuple[LowRankSpec, ...]:
    """What the functions of all packages of a recipe take of adapters that are not merged."""
    if recipe.export.chunks == 1 or recipe.export.low_rank is None:
        return low_rank_specs(recipe)
    return tuple(spec for chunk in chunks_of(build_stacks(recipe, exported_form(recipe))) for spec in chunk.low_rank)


def states_of_packages(recipe: Recipe) -> dict[str, State]:
    """The states by name of all packages that a recipe asks for, or what the host keeps in their place."""
    if recipe.export.chunks == 1:
        return states_of(state_specs(recipe))
    chunks = chunks_of(build_stacks(recipe, exported_form(recipe)))
    return {name: state for chunk in chunks for name, state in states_of(chunk.states).items()}


def states_of_draft(recipe: Recipe) -> set[str]:
    """The names of the states that a recipe's draft reads; none without one."""
    if recipe.draft is None:
        return set()
    owners = {recipe.draft.kinds[kind].attention.shares_kv_with for kind in recipe.draft.layer_kinds}
    read = (spec for kind, spec in drafting_states(recipe).items() if kind in owners)
    return {name for spec in read for name in (spec.keys, spec.values) if name is not None}


def drafting_states(recipe: Recipe) -> dict[str, StateSpec]:
    """The states that a recipe's draft reads, by kind, in the package that it is in."""
    chunks = chunks_of(build_stacks(recipe, exported_form(recipe)))
    return next(chunk.states for chunk in chunks if chunk.drafts)


def packed_parts(stacks: Sequence[StackModule], package: Path) -> dict[str, PackedParts]:
    """Each stored parameter in the packages that were built at `package`: of two copies, the last."""
    if package.suffix == SUFFIX:
        return {
            name: AssetParts(chunk.file(package) / PROGRAM, placed, name, places)
            for chunk in chunks_of(stacks)
            for places in (places_in(chunk.file(package)),)
            for name, placed in WeightLayout.of(chunk.parameters).placed.items()
        }
    return {
        name: PackedParts(chunk.file(package) / FILE, placed)
        for chunk in chunks_of(stacks)
        for name, placed in WeightLayout.of(chunk.parameters).placed.items()
    }


class _Cutting:
    """A model as a row of items: its front, each layer, its head. A package may begin with those of `cuts`."""

    def __init__(self, stacks: Sequence[StackModule]) -> None:
        decoder = stacks[0]
        if not isinstance(decoder, Decoder):
            raise TypeError("a model's decoder comes first")
        self.recipe, self.kinds = decoder.recipe, decoder.recipe.model.layer_kinds
        self.said = self.recipe.export.cut
        self.drafts = [stack for stack in stacks if isinstance(stack, Draft)]
        self.stacks, self.all = stacks, stored_parameters(stacks)
        self.items = len(self.kinds) + 2
        self.has_table = self.recipe.export.table == "package"
        self.drafting = self._drafting_item()
        self.cuts = [item for item in range(2, self.items) if not self._hangs_together(item - 1)]
        sizes = [self._bytes(self._names_of(item)) for item in range(self.items)]
        sizes[-1] += self._records(decoder)
        self.before = [sum(sizes[:item]) for item in range(self.items + 1)]
        self.table = self._bytes([EMBEDDING])
        self.of_draft = self._bytes(self._names_of_draft()) + sum(map(self._records, self.drafts))

    def chunks(self) -> tuple[Chunk, ...]:
        cuts = self._choose()
        ends = [*cuts, self.items]
        found = []
        for number, (begin, end) in enumerate(zip([0, *cuts], ends, strict=True), 1):
            names = {name for item in range(begin, end) for name in self._names_of(item)}
            drafts = bool(self.drafts) and begin <= self.drafting < end
            if drafts:
                names |= {*self._names_of_draft(), *([EMBEDDING] if self.has_table else [])}
            layers = max(begin - 1, 0), min(end, self.items - 1) - 1
            is_last = end == self.items
            parameters = Parameters(
                self.all.compression,
                {name: shape for name, shape in self.all.shapes.items() if name in names},
                tuple(
                    block for stack in self.stacks if self._says(stack, is_last, drafts) for block in head_blocks(stack)
                ),
            )
            found.append(Chunk(self.recipe, number, len(ends), *layers, begin == 0, is_last, drafts, parameters))
        return tuple(found)

    def _says(self, stack: StackModule, is_last: bool, drafts: bool) -> bool:
        """Whether the head of a stack is in a package."""
        return drafts if stack in self.drafts else is_last

    def _choose(self) -> list[int]:
        """The items that packages begin with, but for the first."""
        said, most = self.said, len(self.cuts) + 1
        spreads = self._spreads()
        if said.count is not None:
            if said.count > most:
                at = ".count" if isinstance(self.recipe.export.chunks, ChunkSizes) else ""
                raise self._refused(
                    f"{at}: {said.count} packages cannot be made of it: {most} is the most{self._why_together()}"
                )
            return next(islice(spreads, said.count - 1, None))[1]
        room = AUTO_BYTES if said.max_bytes is None else said.max_bytes
        smallest = max(self._size(*pair) for pair in self._pairs(self.cuts))  # with all cuts that there are
        if room < smallest:
            largest, at = self._largest(self.cuts), ".max_bytes" if said.max_bytes is not None else ": auto"
            raise self._refused(f"{at}: {room} is less than {largest} takes; the smallest that can be is {smallest}")
        return next(cuts for size, cuts in spreads if size <= room)

    def _refused(self, why: str) -> RecipeError:
        return RecipeError(f"{self.recipe.name}: export.chunks{why}")

    def _spreads(self) -> Iterator[tuple[float, list[int]]]:
        """For one package, two and so on: the bytes of the largest, as small as it can be, and the cuts that do it."""
        places = [0, *self.cuts, self.items]
        best: list[tuple[float, list[int]]] = [(0.0 if place == 0 else inf, []) for place in places]
        for _ in range(len(places) - 1):
            following: list[tuple[float, list[int]]] = [(inf, [])]
            for end in range(1, len(places)):
                options = (
                    (max(best[begin][0], self._size(places[begin], places[end])), [*best[begin][1], places[begin]])
                    for begin in range(end)
                )
                following.append(min(options))
            best = following
            yield best[-1][0], best[-1][1][1:]

    def _size(self, begin: int, end: int) -> int:
        """Bytes of the weights of a package with the items from `begin` to before `end`."""
        size = RECORD_BYTES + self.before[end] - self.before[begin]
        has_front, has_head = begin == 0 and self.has_table, end == self.items and self.recipe.model.head.tied
        if has_front and has_head:
            size -= self.table
        if self.drafts and begin <= self.drafting < end:
            size += self.of_draft + (self.table if self.has_table and not (has_front or has_head) else 0)
        return size

    def _pairs(self, cuts: list[int]) -> Iterator[tuple[int, int]]:
        """The first item of each package, and the one behind its last."""
        return zip([0, *cuts], [*cuts, self.items], strict=True)

    def _bytes(self, names: Sequence[str]) -> int:
        """Of these parameters in a weight.bin."""
        parts = (
            part
            for n in names
            for part in self.all.compression.storage(n, self.all.shapes[n]).parts(self.all.shapes[n])
        )
        return sum(align(part.bytes) + RECORD_BYTES for part in parts)

    def _records(self, stack: StackModule) -> int:
        """Bytes of the records that the products of a stack's head have of their own."""
        shapes = [(block.parameter, self.all.shapes[block.parameter]) for block in head_blocks(stack)]
        return sum(RECORD_BYTES * len(self.all.compression.storage(*each).parts(each[1])) for each in shapes)

    def _names_of(self, item: int) -> list[str]:
        own = [name for name in self.all.shapes if not any(name.startswith(d.of.prefix) for d in self.drafts)]
        if item == 0:
            return [n for n in own if n.startswith(("embedding.", "per_layer.")) and (self.has_table or n != EMBEDDING)]
        if item == self.items - 1:
            tied = [EMBEDDING] if self.recipe.model.head.tied else []
            return [*tied, *(name for name in own if name.startswith(("norm.", "head.")))]
        return [name for name in own if name.startswith(f"layers.{item - 1}.")]

    def _names_of_draft(self) -> list[str]:
        return [name for name in self.all.shapes if any(name.startswith(d.of.prefix) for d in self.drafts)]

    def _last_of(self, kind: str) -> int:
        return max(index for index, name in enumerate(self.kinds) if name == kind)

    def _read_by_draft(self) -> list[int]:
        """The layers whose caches a draft reads."""
        return [self._last_of(owner) for draft in self.drafts for owner in draft.owners]

    def _drafting_item(self) -> int:
        return max(self._read_by_draft(), default=0) + 1

    def _hangs_together(self, layers: int) -> bool:
        """Whether no package may end after the first `layers` layers."""
        read = self._read_by_draft()
        if read and min(read) < layers <= max(read):
            return True
        if self.said.share == "pass":
            return False
        return any(owner < layers <= reader for owner, reader in shared_layers(self.recipe))

    def _why_together(self) -> str:
        hanging = [layers for layers in range(1, len(self.kinds)) if self._hangs_together(layers)]
        if not hanging:
            return ""
        remedy = "; `share: pass` hands them on" if self.said.share == "owner" else ""
        return f", for layers {hanging[0] - 1} to {hanging[-1]} share caches{remedy}"

    def _largest(self, cuts: list[int]) -> str:
        """What is in the largest of the packages, and what would make it smaller."""
        begin, end = max(self._pairs(cuts), key=lambda pair: self._size(*pair))
        first, last = max(begin - 1, 0), min(end, self.items - 1) - 2
        if begin == self.items - 1:
            return "the head alone"
        layers = f"layer {first}" if first == last else f"layers {first} to {last}"
        if begin == 0 and self.has_table and first == last:
            return f"the embedding table with {layers} (`export.table: host` leaves it outside)"
        shares = first < last and any(self._hangs_together(at) for at in range(first + 1, last + 1))
        if not shares:
            return layers
        remedy = " (`share: pass` hands them on)" if self.said.share == "owner" else ""
        return f"{layers}, which share caches{remedy},"
