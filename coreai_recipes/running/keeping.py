"""A session's states set aside, for a text that may be asked for again after another one."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from coreai_recipes.manifest.schema import State
    from coreai_recipes.running.carried import Snapshots


@dataclass(frozen=True)
class Kept:
    """What a session held: `token_ids`, how far its calls had `written`, its states (of full caches the rows up to
    there), and the snapshots of what it carried."""

    token_ids: tuple[int, ...]
    written: int
    states: "Mapping[str, Tensor]"
    snapshots: "Snapshots"

    @property
    def bytes(self) -> int:
        """The memory that it takes."""
        own = sum(tensor.numel() * tensor.element_size() for tensor in self.states.values())
        return own + self.snapshots.bytes


def used_rows(state: "Tensor", described: "State", written: int) -> "Tensor":
    """A view of the rows that calls up to `written` may have filled: of full caches, whose position p is row p; all of
    what holds a ring, or lies flat."""
    full = all(kind.window is None for kind in described.kinds.values())
    in_rows = state.ndim == 4 and all(kind.rows == state.shape[2] for kind in described.kinds.values())
    return state[:, :, :written] if full and in_rows else state
