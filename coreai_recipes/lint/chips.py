"""The chips that rules hold for, and what was measured of each."""

from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, TypeAdapter

from coreai_recipes.errors import UserError
from coreai_recipes.recipe.yaml_reader import read_yaml

FILE = Path(__file__).with_name("chips.yaml")


class Chip(BaseModel):
    """One engine, of phones or of Macs. A limit is None where nobody has measured it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    name: str
    group: Literal["phones", "macs"]
    source: str
    width: int | None = None
    working_set: int | None = None
    streaming: tuple[float, float] | None = None
    teraflops: tuple[float, float] | None = None


@cache
def chips() -> dict[str, Chip]:
    """All of them, by id."""
    node, problems = read_yaml(FILE.read_bytes(), str(FILE))
    assert node is not None, problems  # our own file
    return {chip.id: chip for chip in TypeAdapter(list[Chip]).validate_python(node.plain())}


def find_chip(word: str) -> Chip:
    """The chip of that id, in capitals or not. Raises UserError with the nearest."""
    known = {name.lower(): chip for name, chip in chips().items()}
    found = known.get(word.lower())
    if found is None:
        close = get_close_matches(word.lower(), known, n=1)
        hint = f"did you mean {known[close[0]].id}? " if close else ""
        raise UserError(f"--device {word!r:.80}: no such chip: {hint}the chips are {', '.join(chips())}")
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
