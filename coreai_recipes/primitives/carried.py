"""What a layer hands from call to call besides rows by position: the state of a recurrence, a convolution's tail.

Such a tensor is what all real tokens so far have left. Padding never enters it, and it cannot go back: a call at a
position needs the tensor as the call before that position gave it. Before the first token it is zeros.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from coreai_recipes.primitives.buffer import Buffer
from coreai_recipes.primitives.linear_state import LinearState


@dataclass(frozen=True)
class CarriedTensor:
    """What the primitive of a layer declares to carry: its `name` there, and its `shape` of one layer.

    Of a convolution's tail, (T, C): its inputs at the last T positions.
    """

    name: str
    shape: tuple[int, ...]
    is_tail: bool = False


@dataclass
class Carried:
    """One layer's tensors by name, (1, *shape): as the call before has `given` them, as this one has `left` them.

    With a `buffer` they are those of the last commit, and a call leaves rows in it instead.
    """

    given: Mapping[str, Tensor] = field(default_factory=dict)
    left: dict[str, Tensor] = field(default_factory=dict)
    buffer: Buffer | None = None

    def earlier(self, tensor: CarriedTensor) -> Tensor:
        """(1, *shape): zeros where this is the first call."""
        return self.given[tensor.name] if tensor.name in self.given else torch.zeros(1, *tensor.shape)

    @property
    def rows(self) -> Buffer:
        """The buffer of layers that have one."""
        if self.buffer is None:
            raise ValueError("these layers keep no rows")
        return self.buffer

    def leave(self, tensor: CarriedTensor, value: Tensor) -> None:
        self.left[tensor.name] = value

    def earlier_state(self, tensor: CarriedTensor) -> LinearState:
        """The state of a recurrence, with what its first half lacks where that is kept too."""
        return LinearState(self.earlier(tensor), self.given.get(low_half(tensor).name))

    def leave_state(self, tensor: CarriedTensor, state: LinearState) -> None:
        self.leave(tensor, state.high)
        if state.low is not None:
            self.leave(low_half(tensor), state.low)


def low_half(tensor: CarriedTensor) -> CarriedTensor:
    """Of the state of a recurrence, what float16 has lost of it."""
    return replace(tensor, name=f"{tensor.name}_low")


def layer_of(tensors: Tensor, place: Tensor) -> Tensor:
    """Of what all layers of a kind carry, (L, *shape), that of the one at `place` (1,): (1, *shape)."""
    at = place[0]
    # the view says what the size of a slice is whose place is known only to the linker, which then drops it
    return tensors[at : at + 1].view(1, *tensors.shape[1:])


def tail_placement(rows: int, queries: int, count: Tensor) -> Tensor:
    """(1, T, T + S) float32: 1 where row t of the next tail, of `rows`, is row r of the old one and S tokens behind it,
    the first `count` (1,) of which are real."""
    wanted = count + torch.arange(rows, dtype=torch.int32, device=count.device)  # (T,)
    row = torch.arange(rows + queries, dtype=torch.int32, device=count.device)
    return (row.unsqueeze(0) == wanted.unsqueeze(1)).float().unsqueeze(0)
