"""What a call computes once for all layers of a kind, and what it is called between fragments."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from coreai_recipes.primitives.cache import Cache, Placement, RingCache, RowCache


@dataclass(frozen=True)
class LayerInputs:
    """cos, sin, mask and where to write; and the queries' temperature (1, 1, 1, S), where the kind has one.

    Written are the rows from `first` (1,) on, or where `placement` says when several tokens come into a ring; `padding`
    (1, 1, S, 1) is 1 for tokens behind the real ones, None with a single token. All three are None where layers only
    read.
    """

    cos: Tensor
    sin: Tensor
    mask: Tensor
    first: Tensor | None = None
    placement: Placement | None = None
    padding: Tensor | None = None
    temperature: Tensor | None = None

    @classmethod
    def of_ports(cls, named: Mapping[str, Tensor]) -> "LayerInputs":
        """What a layer was given by name: there is no cos where there is no rotary, no `put` where rows are written."""
        none = torch.empty(0, device="cpu")
        padding, put = named.get("padding"), named.get("put")
        placement = None if put is None or padding is None else Placement(put, named["kept"], padding)
        return cls(
            named.get("cos", none),
            named.get("sin", none),
            named["mask"],
            named.get("first", none),
            placement,
            padding,
            named.get("temperature"),
        )

    def ports(self) -> dict[str, Tensor]:
        """The same by name."""
        found = {"cos": self.cos, "sin": self.sin, "mask": self.mask, "temperature": self.temperature}
        found |= {"first": self.first, "padding": self.padding}
        if self.placement is not None:
            found |= {"put": self.placement.put, "kept": self.placement.kept}
        return {name: tensor for name, tensor in found.items() if tensor is not None}

    def cache(self, keys: Tensor, values: Tensor | None, slot: Tensor) -> Cache:
        """The cache at `slot` of these states that the layer writes: a ring's where there is a `placement`."""
        if self.placement is not None:
            return RingCache(keys, values, slot, self.placement)
        if self.first is None:
            raise ValueError("these layers write no cache")
        return RowCache(keys, values, slot, self.first, self.padding)
