"""What a call computes once for all layers of a kind, and what it is called between fragments."""

from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from coreai_recipes.primitives.cache import Cache, FunctionalCache, Placement, RingCache, RowCache
from coreai_recipes.primitives.carried import Carried

WHOLE_NUMBERS = ("first", "positions")
ROTATING = ("cos", "sin", "positions")
SHARED = ("padding", "held", "later", "starts")  # the same for every kind that has them
# computed in float32 up to the port itself: float16 has 11 bits for an angle, and for a position
FLOAT32 = ("cos", "sin", "temperature")
Angles = tuple[Tensor, ...]


@dataclass(frozen=True)
class LayerInputs:
    """Each field is a port of a layer's fragment, under its own name; None where a call or a kind has none.

    Attributes:
        mask: 0 where a query sees a key, as `AttentionCore.attend` has it.
        cos, sin: of each pair that turns, (1, R/2, 1, S).
        positions: of the tokens, (1, S), in place of cos and sin where the rotary makes them itself.
        temperature: a factor of queries, (1, 1, 1, S).
        first: written are the rows of a state from this one on, (1,).
        put, kept: or where `Placement` says, when several tokens come into a ring.
        tail: which rows are a convolution's next tail, where padding may stand behind them, as `tail_placement` has it.
        held, later, before: with a buffer, which of its rows are held, which stand behind which, and which are the
            tail before the call (`primitives.buffer`).
        starts: 1 for the token at position 0, (1, 1, 1, S).
        padding: 1 for tokens behind the real ones, (1, 1, S, 1).
    """

    mask: Tensor | None = None
    cos: Tensor | None = None
    sin: Tensor | None = None
    temperature: Tensor | None = None
    first: Tensor | None = None
    put: Tensor | None = None
    kept: Tensor | None = None
    tail: Tensor | None = None
    held: Tensor | None = None
    later: Tensor | None = None
    before: Tensor | None = None
    starts: Tensor | None = None
    padding: Tensor | None = None
    positions: Tensor | None = None

    @classmethod
    def of_ports(cls, named: Mapping[str, Tensor]) -> "LayerInputs":
        """Those among what a fragment was given by name."""
        return cls(**{field.name: named[field.name] for field in fields(cls) if field.name in named})

    def ports(self) -> dict[str, Tensor]:
        """The same by name."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: tensor for name, tensor in found.items() if tensor is not None}

    @property
    def hidden(self) -> Tensor:
        """The mask of an attention, which has one."""
        if self.mask is None:
            raise ValueError("these layers attend to nothing")
        return self.mask

    @property
    def angles(self) -> Angles:
        """What a rotary turns by: positions, or cos and sin, empty where nothing turns."""
        if self.positions is not None:
            return (self.positions,)
        if self.cos is None or self.sin is None:
            none = torch.empty(0, device="cpu")
            return none, none
        return self.cos, self.sin

    def cache(self, keys: Tensor, values: Tensor | None, slot: Tensor, carried: Carried | None = None) -> Cache:
        """The cache at `slot` of these states that the layer writes: a ring's where it is `put`."""
        carried = carried or Carried()
        if self._placement is not None:
            return RingCache(keys, values, slot, self._placement, carried=carried)
        if self.first is None:
            raise ValueError("these layers write no cache")
        return RowCache(keys, values, slot, self.first, self.padding, carried=carried)

    def functional_cache(
        self, keys: Tensor, values: Tensor | None, slot: Tensor, carried: Carried | None = None
    ) -> FunctionalCache:
        """The same where the host keeps what would be states."""
        placed = self.first, self.padding, self._placement
        return FunctionalCache(keys, values, slot, *placed, carried=carried or Carried())

    @property
    def _placement(self) -> Placement | None:
        """Where tokens go in a ring that several of them come into."""
        if self.put is None or self.kept is None or self.padding is None:
            return None
        return Placement(self.put, self.kept, self.padding)
