"""Sizes that each call decides for itself, as Apple's runner of coreai-models has them on macOS."""

from typing import Self


class OpenSize(int):
    """A size that stands open in a program. Its value is the one that fragments are traced with, which no other size
    of theirs may happen to have; it prints as its name."""

    name: str

    def __new__(cls, name: str, traced: int) -> Self:
        made = super().__new__(cls, traced)
        made.name = name
        return made

    def __str__(self) -> str:
        return self.name

    def __format__(self, spec: str) -> str:
        return format(self.name, spec)


TOKENS = OpenSize("tokens", 11)  # of a call
SEEN = OpenSize("seen", 29)  # the positions up to its last token
ROWS = OpenSize("rows", 37)  # that a cache has room for
