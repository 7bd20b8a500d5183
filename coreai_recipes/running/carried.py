"""What layers carry from call to call, at those positions of a sequence that a session may go back to.

Each call gives new tensors, so that to keep the old ones takes no copy: they are the snapshot. Where a program keeps
rows since its last commit, it goes back to any position since by itself; a snapshot is then what a commit has made.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from coreai_recipes.running.program import SavedProgram

MOST_KEPT = 4  # each takes as much memory as a session's own


class Snapshots:
    """Of the tensors that a program carries. Where it carries none, any position can be gone back to."""

    def __init__(self, program: "SavedProgram") -> None:
        self._program = program
        self._now: tuple[int, Mapping[str, Tensor]] = 0, {}
        self._kept: dict[int, Mapping[str, Tensor]] = {}
        self._aside = False

    def set_aside(self) -> "Snapshots":
        """The same for later, when the program may have held another text: no call changes the tensors, and what is
        only in rows of a buffer is committed."""
        if self._program.buffered and not self._aside:
            self._program.commit(self._now[0])
            self.note(self._now[0])
        other = Snapshots(self._program)
        other._now, other._kept, other._aside = self._now, dict(self._kept), True
        return other

    def resumed(self) -> "Snapshots":
        """Of what was set aside: carried again, and still there for another time."""
        other = self.set_aside()
        other._aside = False
        if self._program.carries:
            position, carried = self._now
            self._program.restore(carried, position)
        return other

    @property
    def bytes(self) -> int:
        """The memory of all tensors that are kept, each counted once."""
        kept = {id(tensor): tensor for each in (self._now[1], *self._kept.values()) for tensor in each.values()}
        return sum(tensor.numel() * tensor.element_size() for tensor in kept.values())

    def note(self, position: int) -> None:
        """What the program carries now is that of so many tokens."""
        self._now = position, self._program.carried

    def keep(self) -> None:
        """Keep what was noted last, and forget the oldest of too many."""
        position, carried = self._now
        if self._program.buffered:
            self._program.commit(position)
            carried = self._program.carried
        self._kept.pop(position, None)
        self._kept[position] = carried
        while len(self._kept) > MOST_KEPT:
            del self._kept[next(iter(self._kept))]

    def nearest(self, position: int) -> int:
        """The last position up to this one that can be gone back to."""
        if not self._program.carries or self._is_in_rows(position):
            return position
        return max(each for each in (0, self._now[0], *self._kept) if each <= position)

    def go_back(self, position: int) -> None:
        """Carry what was carried at a position that `nearest` gave; what was kept beyond it is of another text."""
        if not self._program.carries:
            return
        if position != self._now[0]:
            in_rows = self._is_in_rows(position)
            self._now = position, self._program.carried if in_rows else self._kept.get(position, {})
        if not self._is_in_rows(position):
            self._program.restore(self._now[1], position)
        self._kept = {each: carried for each, carried in self._kept.items() if each <= position}

    def _is_in_rows(self, position: int) -> bool:
        """Whether the program still has the rows from its last commit up to there."""
        return self._program.buffered and not self._aside and self._program.base <= position <= self._now[0]
