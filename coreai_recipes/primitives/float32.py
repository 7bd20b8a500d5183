"""Islands of float32: parts of a layer that a float16 program computes in float32, between two casts.

`export.float32` names them by what they are called in a layer. A module on an island is the same module: what comes in
is widened, what goes out is narrowed to what came in, and both do nothing to a model in float32.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

# Operations, so that a target can find an island's shores; made of torch's own, so that it need not.
torch.library.define("coreai_recipes::widened", "(Tensor x) -> Tensor")
torch.library.impl("coreai_recipes::widened", "CompositeImplicitAutograd", lambda x: x.to(torch.float32))
torch.library.define("coreai_recipes::narrowed", "(Tensor x, Tensor like) -> Tensor")
torch.library.impl("coreai_recipes::narrowed", "CompositeImplicitAutograd", lambda x, like: x.to(like.dtype))


class Islander(nn.Module):
    """A module of one tensor that may lie on an island: `compute` is what it does, there and elsewhere."""

    in_float32 = False

    def compute(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        if not self.in_float32:
            return self.compute(x)
        found: Tensor = torch.ops.coreai_recipes.narrowed(self.compute(torch.ops.coreai_recipes.widened(x)), x)
        return found


def keep_in_float32(layers: Iterable[nn.Module], names: Sequence[str]) -> None:
    """Put what layers have under these names on an island of its own. A layer that has none there stays as it is."""
    for layer in layers:
        for name in names:
            part = getattr(layer, name)
            if isinstance(part, Islander):
                part.in_float32 = True
