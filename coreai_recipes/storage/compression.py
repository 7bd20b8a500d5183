"""Which parameter is stored in which way, by a recipe's `compress`, and its bytes: by names and shapes alone."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import prod
from typing import Any

from coreai_recipes.decoder.model import PER_LAYER_TABLE
from coreai_recipes.errors import RecipeError
from coreai_recipes.recipe.schema import DRAFT, Recipe, Stored, StoredIntegers, StoredPalette, StoredSource
from coreai_recipes.storage.base import RECORD_BYTES, Shape, Storage, align
from coreai_recipes.storage.float16 import Float16
from coreai_recipes.storage.integers import Integers
from coreai_recipes.storage.palette import Palette
from coreai_recipes.storage.row_blocks import RowBlock
from coreai_recipes.storage.rows import fit_rows

FLOAT16 = Float16()
LAYER = re.compile(r"(?<=\blayers\.)\d+")


def storage_of(said: Stored) -> Storage:
    """What a recipe says of how weights are stored."""
    match said:
        case StoredIntegers():
            return Integers(8 if said.kind == "int8" else 4, said.block, said.symmetric is not False)
        case StoredPalette():
            return Palette(said.bits, said.group)
        case StoredSource():
            raise RecipeError(
                "compress.default: source: the forms of the matrices are the checkpoint's, and it is not read here\n"
                "  `recipe plan --checkpoint SRC` reads them, and so does `recipe build`"
            )
        case _:
            return FLOAT16


@dataclass(frozen=True)
class Rule:
    """How those parameters are stored whose names a pattern matches: `*` stands for any characters, points too."""

    pattern: str
    storage: Storage

    def matches(self, name: str) -> bool:
        return fnmatchcase(shown_name(name), shown_name(self.pattern))


@dataclass(frozen=True)
class Compression:
    """What a recipe's `compress` makes of its parameters, by their names in a package."""

    default: Storage = FLOAT16
    rules: tuple[Rule, ...] = ()
    calibrated: bool = False
    tuned: bool = False  # norms too

    @classmethod
    def of(cls, recipe: Recipe) -> "Compression":
        said = recipe.compress
        if said is None:
            return cls()
        rules = tuple(Rule(rule.match, storage_of(rule.over(said.default))) for rule in said.rules or ())
        return cls(storage_of(said.default), rules, said.calibration is not None, said.tune is not None)

    @property
    def compresses(self) -> bool:
        return any(storage is not FLOAT16 for storage in (self.default, *(rule.storage for rule in self.rules)))

    def is_calibrated(self, name: str, shape: Shape) -> bool:
        """Whether a parameter may be fitted to a text: then its blobs do not follow from its numbers alone."""
        if not self.calibrated or is_for_host(name):
            return False
        if is_norm(name):
            return self.tuned and not is_of_draft(name)
        return self.storage(name, shape).is_coarse

    def storage(self, name: str, shape: Shape) -> Storage:
        """How the parameter `name` is stored: as the last rule says that matches it, else as the default."""
        return self.choose(name, shape).storage

    def row_storage(self, name: str, shape: Shape) -> Storage:
        """How a host has the rows of a table: as `storage` says where it can read that, else as float16."""
        said = self.storage(name, shape)
        is_read = fit_rows(said, shape)[0] == said and not self.is_calibrated(name, shape)
        return said if is_read else FLOAT16

    def choose(self, name: str, shape: Shape) -> "Choice":
        """How the parameter `name` is stored, and why so."""
        matching = [rule for rule in self.rules if rule.matches(name)]
        if not is_matrix(name, shape):
            return Choice(FLOAT16, why="only matrices are compressed" if matching else None)
        rule = matching[-1] if matching else None
        for_host = is_for_host(name)
        default = FLOAT16 if for_host else self.default
        said = default if rule is None else rule.storage
        others = tuple(other for other in matching[:-1] if other.storage != said)
        fitted, why = fit_rows(said, shape) if for_host else (said.fitted(shape), said.misfit(shape))
        return Choice(fitted, rule, others, why)


@dataclass(frozen=True)
class Choice:
    """How a parameter is stored: by which rule, over which others that match it too and say otherwise, and why it is
    not as they say."""

    storage: Storage
    rule: Rule | None = None
    over: tuple[Rule, ...] = ()
    why: str | None = None


@dataclass(frozen=True)
class Parameters:
    """Parameters by name, and what they take as `compression` stores them, without the alignment of their blobs.

    A program takes some of their rows by themselves, as `blocks` say.
    """

    compression: Compression
    shapes: Mapping[str, Shape]
    blocks: tuple[RowBlock, ...] = ()

    def below(self, *prefixes: str) -> "Parameters":
        """Those whose names begin with one of these."""
        return self._only(name for name in self.shapes if name.startswith(prefixes))

    def without(self, *others: "Parameters") -> "Parameters":
        taken = {name for other in others for name in other.shapes}
        return self._only(name for name in self.shapes if name not in taken)

    def _only(self, names: Iterable[str]) -> "Parameters":
        kept = {name: self.shapes[name] for name in names}
        return Parameters(self.compression, kept, tuple(block for block in self.blocks if block.parameter in kept))

    @property
    def calibrates(self) -> bool:
        """Whether any of them may be fitted to a text."""
        return any(self.compression.is_calibrated(name, shape) for name, shape in self.shapes.items())

    @property
    def weights(self) -> int:
        return sum(map(prod, self.shapes.values()))

    @property
    def bytes(self) -> int:
        return sum(storage.bytes(shape) for storage, shape in self._stored())

    @property
    def file_bytes(self) -> int:
        """The size of weight.bin, if it holds just these: with what stands before each blob."""
        end = RECORD_BYTES
        for storage, shape in self._stored():
            for part in storage.parts(shape):
                end = align(end) + RECORD_BYTES + part.bytes
        for block in self.blocks:
            shape = self.shapes[block.parameter]
            end = align(end) + RECORD_BYTES * len(self.compression.storage(block.parameter, shape).parts(shape))
        return end

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.bytes / self.weights

    @property
    def forms(self) -> str:
        """How they are stored, the way that most bytes are in first: `int8 per channel and float16`."""
        taken: Counter[str] = Counter()
        for storage, shape in self._stored():
            taken[str(storage)] += storage.bytes(shape)
        return " and ".join(name for name, _ in taken.most_common())

    def _stored(self) -> Iterator[tuple[Storage, Shape]]:
        return ((self.compression.storage(name, shape), shape) for name, shape in self.shapes.items())

    def to_json(self) -> dict[str, Any]:
        bits = round(self.bits_per_weight, 4)
        taken = {"weights": self.weights, "bytes": self.bytes, "file_bytes": self.file_bytes}
        return {**taken, "bits_per_weight": bits, "forms": self.forms}


def shown_name(parameter: str) -> str:
    """What a reader calls a parameter: a matrix by the module that it is the weight of."""
    return parameter.removesuffix(".weight")


def any_layer(parameter: str) -> str:
    """The pattern of a parameter's name for all layers: `layers.*.mlp.down`."""
    return LAYER.sub("*", shown_name(parameter))


def is_compressible(name: str, shape: Shape) -> bool:
    """Whether a parameter of weight.bin may be stored otherwise than in float16."""
    return is_matrix(name, shape) and not is_for_host(name)


def is_for_host(name: str) -> bool:
    """Whether a host looks up a table's rows: it lies beside the package, and a rule that names it is needed to store
    it otherwise than in float16."""
    return name == PER_LAYER_TABLE


def is_norm(name: str) -> bool:
    """Whether a parameter is the weight of a norm."""
    owner, _, leaf = name.rpartition(".")
    return owner.endswith("norm") and leaf == "weight"


def is_of_draft(name: str) -> bool:
    return name.startswith(f"{DRAFT}.")


def is_matrix(name: str, shape: Shape) -> bool:
    """Whether a parameter multiplies or is looked up: no norm, whatever it goes over, no bias of experts, and none of
    the few taps of a convolution's channels."""
    owner, _, leaf = name.rpartition(".")
    multiplies = not owner.endswith(("norm", "attention.conv")) and not leaf.endswith("bias")
    return multiplies and sum(size > 1 for size in shape) > 1
