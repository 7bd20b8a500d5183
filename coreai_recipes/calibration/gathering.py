"""What goes into each matrix while modules run: seen where torch multiplies by it, whatever module it belongs to."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

MULTIPLICATIONS = (torch.matmul, torch.bmm, Tensor.matmul, Tensor.__matmul__)


class Gathering(TorchFunctionMode):
    """Within its context, inputs (I, tokens) of the matrices that `names` has by identity; of experts, of all of them.

    `inputs` are by the name of the first matrix that took them, and `taken` says which one that is for each name:
    queries, keys and values are made of the same.
    """

    def __init__(self, names: Mapping[int, str]) -> None:
        super().__init__()
        self.names = names
        self.inputs: dict[str, Tensor] = {}
        self.taken: dict[str, str] = {}
        self._first: dict[tuple[int, torch.Size], str] = {}  # by the place of the values
        self._held: list[Tensor] = []  # a place is taken by nobody else as long as it is held

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.conv2d and id(args[1]) in self.names:
            self._note(self.names[id(args[1])], args[0], args[0].shape[1])
        elif func in MULTIPLICATIONS and id(args[0]) in self.names:
            self._note(self.names[id(args[0])], args[1], args[1].shape[-2])
        elif func is torch._C._nn.linear and id(args[1]) in self.names:
            self._note(self.names[id(args[1])], args[0].movedim(-1, 0), args[0].shape[-1])
        return func(*args, **(kwargs or {}))

    def _note(self, name: str, x: Tensor, width: int) -> None:
        first = self._first.setdefault((x.data_ptr(), x.shape), name)
        self.taken[name] = first
        if first == name:
            self._held.append(x)
            # channels first, or (experts, channels, tokens)
            flat = x.movedim(-2, 0) if x.dim() == 3 and x.shape[0] != width else x
            self.inputs[name] = flat.reshape(width, -1)
