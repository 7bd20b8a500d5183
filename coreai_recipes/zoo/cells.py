"""The cells of a zoo: a recipe in one of its forms each."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

from coreai_recipes.zoo.schema import FLOAT16_BITS, Skip, Zoo


@dataclass(frozen=True)
class Cell:
    """One build. `recipe` is as the zoo says it, `source` what loads it anywhere: a path, or a built-in name.

    `bits` and `device` are None where nothing was said, `checkpoint` where it is the recipe's own.
    """

    recipe: str
    source: str
    name: str
    checkpoint: str | None
    bits: int | None
    device: str | None
    format: str

    @property
    def words(self) -> str:
        """`qwen3-0.6b, 4 bits, m5, coreml`."""
        bits = None if self.bits is None else f"{self.bits} bits"
        return ", ".join(each for each in (self.recipe, bits, self.device, self.format) if each)

    @property
    def overrides(self) -> tuple[str, ...]:
        """What is set in the recipe, as `--set`. At 16 bits nothing is compressed, whatever the recipe says."""
        whole = ("compress=null",) if self.bits == FLOAT16_BITS else ()
        return (f"export.format={self.format}", *whole)

    @property
    def build_bits(self) -> int | None:
        """As `--bits` of a build."""
        return None if self.bits == FLOAT16_BITS else self.bits

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Entry:
    """A recipe of the zoo, loaded: `format` is its own, `checkpoint` what the zoo says."""

    recipe: str
    source: str
    name: str
    format: str
    checkpoint: str | None


def expand(zoo: Zoo, entries: Sequence[Entry]) -> list[Cell]:
    """All combinations that are not skipped, in the order of the file.

    A device is a matter of Core ML's rules: Core AI's form of a recipe is one cell, whatever devices are listed.
    """
    return [cell for cell in combinations(zoo, entries) if not any(matches(skip, cell) for skip in zoo.skip)]


def combinations(zoo: Zoo, entries: Sequence[Entry]) -> Iterator[Cell]:
    """All, skipped or not, each once."""
    seen = set()
    devices: Sequence[str | None] = zoo.vary.device or [None]
    widths: Sequence[int | None] = zoo.vary.bits or [None]
    for entry in entries:
        formats: Sequence[str] = zoo.vary.format or [entry.format]
        for form, device, bits in product(formats, devices, widths):
            on = device if form == "coreml" else None
            cell = Cell(entry.recipe, entry.source, entry.name, entry.checkpoint, bits, on, form)
            if cell not in seen:
                seen.add(cell)
                yield cell


def matches(skip: Skip, cell: Cell) -> bool:
    """Whether the cell has all that is said."""
    said: Mapping[str, Any] = skip.model_dump(exclude_none=True)
    return all(getattr(cell, key) == value for key, value in said.items())


def beside(folder: Path, word: str) -> Path:
    """A path as a zoo.yaml in `folder` means it."""
    return folder / Path(word).expanduser()
