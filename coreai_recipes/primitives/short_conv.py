"""A short causal convolution in the place of attention (LFM2)."""

from torch import Tensor, nn

from coreai_recipes.primitives.cache import Cache
from coreai_recipes.primitives.carried import Carried, CarriedTensor
from coreai_recipes.primitives.causal_conv import ROWS, CausalConvolution, tail_of, tail_since
from coreai_recipes.primitives.layer_inputs import LayerInputs
from coreai_recipes.primitives.projection import Projection
from coreai_recipes.primitives.registry import register
from coreai_recipes.recipe.schema import LayerKind, LayerNorm, RMSNorm, RotaryFold
from coreai_recipes.recipe.schema import ShortConvolution as ShortConvolutionSpec


@register("attention", "short_conv")
class ShortConvolution(nn.Module):
    """x (1, C, 1, S) -> (1, C, 1, S)."""

    def __init__(
        self, kind: LayerKind, hidden_size: int, norm: RMSNorm | LayerNorm, folded: RotaryFold | None = None
    ) -> None:
        super().__init__()
        spec = _spec_of(kind)
        self.input = Projection(hidden_size, 3 * spec.channels, spec.bias)
        self.conv = CausalConvolution(spec.channels, spec.taps, spec.bias)
        self.last = Projection(spec.channels, hidden_size, spec.bias)

    @classmethod
    def states(cls, kind: LayerKind) -> tuple[CarriedTensor, ...]:
        """The convolution's inputs at the last positions."""
        spec = _spec_of(kind)
        return (tail_of(spec.channels, spec.taps),)

    @classmethod
    def row_parts(cls, kind: LayerKind) -> dict[str, int]:
        """The columns of a buffer's rows: the convolution's inputs."""
        return {ROWS: _spec_of(kind).channels}

    @classmethod
    def commit(cls, kind: LayerKind, carried: Carried, given: LayerInputs) -> None:
        """Leave what N layers carry, (N, ...), as it is behind the rows that `given` says are held."""
        tail, buffer = tail_of(_spec_of(kind).channels, _spec_of(kind).taps), carried.rows
        carried.leave(tail, tail_since(carried.earlier(tail), buffer, given.before))

    def forward(self, x: Tensor, given: LayerInputs, cache: Cache) -> Tensor:
        before, after, values = self.input(x).chunk(3, 1)  # (1, C, 1, S) each
        y: Tensor = self.last(after * self.conv(before * values, given, cache))
        return y


def _spec_of(kind: LayerKind) -> ShortConvolutionSpec:
    spec = kind.attention
    if not isinstance(spec, ShortConvolutionSpec):
        raise TypeError(f"{spec.kind} attention is no convolution")
    return spec
