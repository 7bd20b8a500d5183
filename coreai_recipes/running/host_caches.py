"""Keys and values that the host keeps between calls, where a bundle has no states for them (docs/bundle.md)."""

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

DRAFT = "draft"


class HostCaches:
    """Tensors by name, (layers, KV heads, rows, head_dim), zeros at first: every function but a draft's takes all of
    them whole and gives the rows of its tokens; a draft reads those in `drafting`, and gives none."""

    def __init__(self, shapes: "Mapping[str, tuple[int, ...]]", drafting: Collection[str] = ()) -> None:
        self._shapes, self._drafting = shapes, drafting
        self._tensors: dict[str, Tensor] = {}

    @property
    def tensors(self) -> "dict[str, Tensor]":
        """All of them, as the last call left them."""
        if not self._tensors:
            import torch

            self._tensors = {name: torch.zeros(shape) for name, shape in self._shapes.items()}
        return self._tensors

    def reset(self) -> None:
        """Zeros again."""
        self._tensors = {}

    def read_by(self, function: str) -> "dict[str, Tensor]":
        """What a function is given of them."""
        return {name: each for name, each in self.tensors.items() if function != DRAFT or name in self._drafting}

    def write(self, inputs: "Mapping[str, Tensor]", outputs: "Mapping[str, Tensor]") -> "dict[str, Tensor]":
        """Put the new rows of a call's real tokens in their places: position p is in row p mod rows. Gives the other
        outputs."""
        import torch

        new = {name: outputs[f"new_{name}"] for name in self._shapes if f"new_{name}" in outputs}
        for name, rows in new.items():
            kept, position = self.tensors[name], int(inputs["position"])
            count = int(inputs["count"]) if "count" in inputs else rows.shape[2]
            places = torch.arange(position, position + count) % kept.shape[2]
            kept[:, :, places] = rows[:, :, :count].to(kept.dtype)
        return {name: output for name, output in outputs.items() if name.removeprefix("new_") not in new}
