"""Prompts whose states are kept: the latest of them, in so many bytes."""

from collections.abc import Sequence

from coreai_recipes.running.keeping import Kept
from coreai_recipes.running.session import Session

SHORTEST = 16  # tokens: to read fewer again takes less time than to copy states


class Prefixes:
    """An LRU of what a session held, in at most `limit` bytes; none at all where the runtime shows no states."""

    def __init__(self, session: Session, limit: int) -> None:
        self._session, self._limit = session, limit
        self._kept: list[Kept] = []  # the latest last

    @property
    def bytes(self) -> int:
        return sum(kept.bytes for kept in self._kept)

    def __len__(self) -> int:
        return len(self._kept)

    def prepare(self, token_ids: Sequence[int]) -> int:
        """Make the session hold as much of the beginning of `token_ids` as anything does, and keep what that replaces.
        How many of the tokens need no call."""
        own = self._session.count_reusable(token_ids)
        counted = [(self._session.count_reusable(token_ids, kept), place) for place, kept in enumerate(self._kept)]
        best, place = max(counted, default=(0, 0))
        found = self._kept.pop(place) if best > own else None
        if own < len(self._session.token_ids):  # else the text goes on, and nothing is lost
            self._keep()
        if found is not None:
            self._session.restore(found)
            self._add(found)
        return max(best, own)

    def _keep(self) -> None:
        held = self._session.token_ids
        if self._limit == 0 or len(held) < SHORTEST or any(self._covers(kept, held) for kept in self._kept):
            return
        if (kept := self._session.keep()) is not None:
            self._kept = [each for each in self._kept if not self._covers(kept, each.token_ids)]
            self._add(kept)

    def _add(self, kept: Kept) -> None:
        """What is larger than the limit is forgotten at once."""
        self._kept.append(kept)
        while self._kept and self.bytes > self._limit:
            del self._kept[0]

    def _covers(self, kept: Kept, token_ids: Sequence[int]) -> bool:
        """Whether a text that begins with `token_ids` needs none of them again, after what was kept."""
        return self._session.count_reusable([*token_ids, -1], kept) == len(token_ids)
