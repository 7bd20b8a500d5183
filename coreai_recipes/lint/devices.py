"""The chips that rules hold for, the devices that they are in, and what was measured of each."""

from collections.abc import Iterator
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from coreai_recipes.errors import UserError
from coreai_recipes.recipe.yaml_reader import read_yaml

FILE = Path(__file__).with_name("devices.yaml")

Range = tuple[float, float]


class _Entry(BaseModel):
    """What a device and a chip have of their own. What nobody has measured is None."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: Annotated[str, Field(pattern=r"^[A-Za-z0-9][a-z0-9-]*$")]
    name: str = ""
    source: str
    memory: tuple[int, ...] = ()
    streaming: Range | None = None
    teraflops: Range | None = None


class Chip(_Entry):
    """One engine, of phones or of Macs, with the limits that rules know, and the devices that it is in."""

    group: Literal["phones", "macs"]
    width: int | None = None
    working_set: int | None = None
    prefill: Literal["real", "padded"] | None = None
    devices: tuple[_Entry, ...] = ()


class Device(_Entry):
    """What `--device` names: a product, or a chip as such.

    Attributes:
        chip: the engine that is in it, with the limits that rules know.
        memory: sizes in GB that it is sold with, empty where no source says.
        streaming: GB/s at which its engine was seen to read weights, from, to.
        teraflops: 10^12 floating point operations a second that its engine was seen to make, from, to.
    """

    chip: Chip

    @property
    def is_phone(self) -> bool:
        return self.chip.group == "phones"

    @property
    def words(self) -> str:
        """`iPhone 17 Pro (A19)`, `M5`."""
        return self.name if self.id == self.chip.id else f"{self.name} ({self.chip.id})"


@cache
def chips() -> dict[str, Chip]:
    """All of them, by id."""
    node, problems = read_yaml(FILE.read_bytes(), str(FILE))
    assert node is not None, problems  # our own file
    return {chip.id: chip for chip in TypeAdapter(list[Chip]).validate_python(node.plain())}


@cache
def devices() -> dict[str, Device]:
    """Every chip, and every device behind the chip that it has, by id."""
    return {device.id: device for chip in chips().values() for device in _devices_of(chip)}


def _devices_of(chip: Chip) -> Iterator[Device]:
    named = chip.name or f"any device with {chip.id}"
    for entry in (chip, *chip.devices):
        own = entry.model_dump(include=set(_Entry.model_fields)) | {"name": entry.name or named}
        yield Device(**own, chip=chip)


def find_device(word: str) -> Device:
    """The device of that id, in capitals or not. Raises UserError with the nearest."""
    known = {name.lower(): device for name, device in devices().items()}
    found = known.get(word.lower())
    if found is None:
        close = get_close_matches(word.lower(), known, n=1)
        hint = f"did you mean {known[close[0]].id}? " if close else ""
        raise UserError(f"--device {word!r:.80}: no such device: {hint}the devices are {', '.join(devices())}")
    return found


def chips_named(words: list[str]) -> tuple[str, ...]:
    """Ids of the chips that a rule names, each by its id or as one of `phones` or `macs`."""
    named: dict[str, None] = {}
    for word in words:
        found = [chip.id for chip in chips().values() if word in (chip.id, chip.group)]
        if not found:
            raise ValueError(f"{word!r} names no chip")
        named.update(dict.fromkeys(found))
    return tuple(named)
