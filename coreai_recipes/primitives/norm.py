"""Norms over the channel axis, in a form that cannot overflow float16."""

import torch
from torch import Tensor, nn

from coreai_recipes.primitives.float32 import Islander
from coreai_recipes.primitives.registry import primitive, register
from coreai_recipes.recipe.schema import LayerNorm as LayerNormSpec
from coreai_recipes.recipe.schema import RMSNorm as RMSNormSpec

# The largest magnitude by which a row is divided is kept at or above this: an all-zero row then gives zeros, not 0/0,
# and sqrt(eps) / SMALLEST squared stays in float16's range for every eps up to 1e-4.
SMALLEST = 2.0**-14


def channel_norm(x: Tensor, eps: float) -> Tensor:
    """(x - mean) / sqrt(var + eps) over the channels of (N, C, 1, S): one operation of a program, where torch's own
    layer_norm would have to bring the channels to the end and back."""
    y = x - x.mean(1, keepdim=True)
    return y * torch.rsqrt((y * y).mean(1, keepdim=True) + eps)


torch.library.define("coreai_recipes::channel_norm", "(Tensor x, float eps) -> Tensor")
torch.library.impl("coreai_recipes::channel_norm", "CompositeExplicitAutograd", channel_norm)


class _Norm(Islander):
    """Parameters are (1, C, 1, 1): x is (N, C, 1, S) and the mean is taken over C. With `rows` = N each row of x has
    weights of its own, (N, C, 1, 1).

    The weight of a `1+w` norm holds the sum: one is added in float32 when the checkpoint is read.
    """

    def __init__(self, spec: RMSNormSpec | LayerNormSpec, channels: int, rows: int | None = None) -> None:
        super().__init__()
        self.root_eps, self.rows = spec.eps**0.5, rows
        has_bias = isinstance(spec, LayerNormSpec) and spec.bias
        self.weight = _parameter(rows or 1, channels) if spec.weight != "none" else None
        self.bias = _parameter(rows or 1, channels) if has_bias else None

    def _rescale(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x over its largest magnitude m, and sqrt(eps) / m: x^2 overflows float16 from 256 on, (x/m)^2 never."""
        # tensors for the scalars: coremltools turns clamp(min=) into a clip up to infinity, and scalar / x into
        # inverse(x, epsilon=1e-4), which is wrong for small x
        smallest, root_eps = (torch.tensor(v, dtype=x.dtype, device=x.device) for v in (SMALLEST, self.root_eps))
        largest = torch.maximum(x.abs().amax(1, keepdim=True), smallest)
        return x / largest, root_eps / largest

    def _finish(self, y: Tensor) -> Tensor:
        if self.weight is not None:
            y = y * self.weight
        if self.bias is not None:
            y = y + self.bias
        return y


@register("norm", "rms")
class RMSNorm(_Norm):
    """x / sqrt(mean(x^2) + eps) * weight, taken as y = x/m, y * rsqrt(mean(y^2) + (sqrt(eps)/m)^2) * weight.

    With `mirrored` it is the first half of the layer norm of (x, -x), whose mean is zero: an operation that engines
    have, in place of nine, which squares x as it is, and overflows float16 from 256 on unless it is wider within.
    """

    def __init__(self, spec: RMSNormSpec, channels: int, rows: int | None = None) -> None:
        super().__init__(spec, channels, rows)
        self.mirrored, self.eps = False, spec.eps

    def compute(self, x: Tensor) -> Tensor:
        if self.mirrored:
            both: Tensor = torch.ops.coreai_recipes.channel_norm(torch.cat((x, -x), 1), self.eps)
            return self._finish(both[:, : x.shape[1]])
        y, root_eps = self._rescale(x)
        return self._finish(y * torch.rsqrt((y * y).mean(1, keepdim=True) + root_eps * root_eps))


@register("norm", "layer")
class LayerNorm(_Norm):
    """(x - mean) / sqrt(var + eps) * weight + bias, rescaled as RMSNorm before the mean is taken."""

    def compute(self, x: Tensor) -> Tensor:
        y, root_eps = self._rescale(x)
        y = y - y.mean(1, keepdim=True)
        return self._finish(y * torch.rsqrt((y * y).mean(1, keepdim=True) + root_eps * root_eps))


def mirror_norms(module: nn.Module) -> None:
    """Have every RMS norm within taken as a layer norm."""
    for norm in module.modules():
        if isinstance(norm, RMSNorm):
            norm.mirrored = True


def build_norm(spec: RMSNormSpec | LayerNormSpec, channels: int, rows: int | None = None) -> nn.Module:
    """The registered norm of `spec` over `channels` channels, with weights for each of `rows`."""
    return primitive("norm", spec.kind)(spec, channels, rows)


def _parameter(rows: int, channels: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(rows, channels, 1, 1), requires_grad=False)
