"""Where a recipe's weights lie on a device: in how many packages, and whether its embedding table is the host's.

Both follow from sizes. A package above what a file of the device may have is cut. The table goes to the host where a
rule says so for its size, and where that saves bytes or packages.
"""

from collections.abc import Collection
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import chain
from math import prod
from typing import Any

from coreai_recipes.decoder.model import Decoder, exported_form
from coreai_recipes.decoder.stack import StackModule
from coreai_recipes.decoder.stacks import build_stacks
from coreai_recipes.errors import RecipeError
from coreai_recipes.lint.devices import Device
from coreai_recipes.planning.bounds import SIZE_RULE, TABLE_RULE, file_limit, table_limit
from coreai_recipes.planning.settings import with_setting
from coreai_recipes.recipe import Recipe
from coreai_recipes.recipe.export_rules import export_problems
from coreai_recipes.recipe.format_rules import format_problems
from coreai_recipes.recipe.host_rules import host_problems
from coreai_recipes.recipe.schema.export import ChunkSizes
from coreai_recipes.storage.chunks import AUTO_BYTES, PROGRAM_BYTES, chunks_of
from coreai_recipes.storage.parameters import EMBEDDING, own_parameters, raw_tables


@dataclass(frozen=True)
class Choice:
    """A field of the recipe, what was chosen for it, and why."""

    field: str
    value: str
    why: str

    @property
    def words(self) -> str:
        return f"{self.field}: {self.value}: {self.why}"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Placed:
    """A recipe whose packages and table are settled, with what was chosen of them.

    Attributes:
        limit: bytes of weights that a file may have, None where no limit is known.
        refused: why it cannot be cut into packages below that, empty where it can or need not.
    """

    recipe: Recipe
    limit: int | None
    choices: tuple[Choice, ...] = ()
    refused: str = ""

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Bytes of weights by package."""
        return tuple(chunk.parameters.bytes for chunk in chunks_of(self._stacks))

    @property
    def weights(self) -> int:
        """Bytes of weights in all packages: of a table in two of them, both."""
        return sum(self.sizes)

    @cached_property
    def table(self) -> int:
        """Bytes of the embedding table as a host would have it."""
        own = own_parameters(self._stacks)
        shape = own.shapes[EMBEDDING]
        return own.compression.row_storage(EMBEDDING, shape).bytes(shape)

    @cached_property
    def table_in_program(self) -> int:
        """Bytes of the embedding table as a program gathers from it: float16, however it is stored."""
        return 2 * prod(own_parameters(self._stacks).shapes[EMBEDDING])

    @property
    def with_tables(self) -> int:
        """Bytes of weights and of the tables that a host reads."""
        raw = raw_tables(self._stacks)
        embedding = self.table if EMBEDDING in raw.shapes else 0
        return self.weights + raw.without(raw.below(EMBEDDING)).bytes + embedding

    @property
    def resident(self) -> int:
        """As `with_tables`, and the states of a session."""
        (decoder,) = (stack for stack in self._stacks if isinstance(stack, Decoder))
        return self.with_tables + decoder.front.state_bytes

    @property
    def why_not(self) -> str:
        """Why the device does not load it, empty where it does."""
        if self.limit is None or max(self.sizes) <= self.limit:
            return ""
        cut = f", and cannot be cut: {self.refused}" if self.refused else ""
        return f"above the {self.limit / 1e9:.2f} GB that a file may have ({SIZE_RULE}){cut}"

    @cached_property
    def _stacks(self) -> list[StackModule]:
        return list(build_stacks(self.recipe, exported_form(self.recipe)))


def place(recipe: Recipe, device: Device, kept: Collection[str]) -> Placed:
    """The recipe with `export.chunks` and `export.table` as the device's limits ask, but for what is kept."""
    inside = _cut(recipe, device, kept)
    if is_kept("export.table", kept):
        said = Choice("export.table", recipe.export.table, "kept, as --set or the recipe says")
        return _with(inside, said)
    outside_recipe = with_setting(recipe, ("table", "host"))
    if recipe.export.table == "host" or problem_of(outside_recipe, "table"):
        return inside
    outside = _cut(outside_recipe, device, kept)
    asked = _why_outside(inside, outside, table_limit(device))
    if asked:
        return _with(outside, Choice("export.table", "host", asked))
    if len(inside.sizes) > 1 and recipe.model.head.tied:
        more = size_words(outside.with_tables - inside.with_tables)
        why = f"the host's file of it would take {size_words(inside.table)}, in all {more} more than its second copy"
        return _with(inside, Choice("export.table", "package", why))
    return inside


def is_kept(field: str, kept: Collection[str]) -> bool:
    """Whether a field is one of these, is in one of them or has one in it."""
    return any(field == name or field.startswith(f"{name}.") or name.startswith(f"{field}.") for name in kept)


def size_words(count: int) -> str:
    """`0.95 GB`, `12.5 MB`."""
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def _with(placed: Placed, choice: Choice) -> Placed:
    return Placed(placed.recipe, placed.limit, (*placed.choices, choice), placed.refused)


def _cut(recipe: Recipe, device: Device, kept: Collection[str]) -> Placed:
    """Cut where a package is above the limit of a file."""
    whole = Placed(recipe, file_limit(device))
    if is_kept("export.chunks", kept):
        return _with(whole, Choice("export.chunks", _chunk_words(recipe), "kept, as --set or the recipe says"))
    if whole.limit is None or max(whole.sizes) <= whole.limit:
        return whole
    most = whole.limit - PROGRAM_BYTES
    sized = {} if most == AUTO_BYTES else {"max_bytes": most}
    refusals: list[str] = []
    for chunks in (sized or "auto", {**sized, "share": "pass"}):  # caches are handed on where no other cut will do
        cut = Placed(with_setting(recipe, ("chunks", chunks)), whole.limit)
        refused = _why_no_cut(cut)
        if not refused:
            taken = f"{len(cut.sizes)} packages of {', '.join(map(size_words, cut.sizes))}"
            handed = "; with `share: owner`, " + refusals[0] if refusals else ""
            why = f"{taken}; one would have {size_words(whole.weights)}, {whole.why_not}{handed}"
            return _with(cut, Choice("export.chunks", _chunk_words(cut.recipe), why))
        refusals.append(refused)
    return Placed(recipe, whole.limit, refused=refusals[-1])


def _why_no_cut(cut: Placed) -> str:
    """Why a recipe cannot be cut as it says, empty where it can."""
    problem = problem_of(cut.recipe, "chunks")
    if problem:
        return problem
    try:
        _ = cut.sizes
    except RecipeError as error:
        return str(error).removeprefix(f"{cut.recipe.name}: ")
    return ""


def _chunk_words(recipe: Recipe) -> str:
    said, cut = recipe.export.chunks, recipe.export.cut
    if not isinstance(said, ChunkSizes):
        return str(said)
    fields = {name: getattr(cut, name) for name in ("count", "max_bytes")}
    words = [f"{name}: {value}" for name, value in fields.items() if value is not None]
    return f"{{{', '.join([*words, *(['share: pass'] if cut.share == 'pass' else [])])}}}"


def problem_of(recipe: Recipe, field: str) -> str:
    """Why a field of `export` cannot be as it is, by the rules of a recipe; empty where it can."""
    plain = recipe.model_dump(mode="json")
    found = chain(export_problems(plain), format_problems(plain), host_problems(plain))
    return next((each.message for each in found if each.location[:2] == ("export", field)), "")


def _why_outside(inside: Placed, outside: Placed, limit: int | None) -> str:
    """Why the table is better with the host than in a package; empty where it is not."""
    if limit is not None and inside.table_in_program > limit:
        taken = size_words(inside.table_in_program)
        return f"{taken} inside the program, and from {size_words(limit)} on a host should keep it ({TABLE_RULE})"
    if inside.refused and not outside.refused:
        return f"with it in a package the model cannot be cut: {inside.refused}"
    before, after = len(inside.sizes), len(outside.sizes)
    if after < before:
        return f"{after} {'package' if after == 1 else 'packages'} where {before} would be needed with it"
    if before > 1 and inside.recipe.model.head.tied and outside.with_tables <= inside.with_tables:
        spared = size_words(inside.weights - outside.weights)
        return f"two packages would hold it, which is tied to the head: {spared} of weights less"
    return ""
