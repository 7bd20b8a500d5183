"""Rotary position embedding: which dimension turns with which, and how fast.

`full`, `partial` and `proportional` differ in frequencies and in pairs, and mixing them up still gives fluent text
(15.4 dB on Gemma 4's global layers). Every kind here is compared with transformers' own class bit for bit.
"""

import math
from collections.abc import Callable
from typing import Self, cast

import torch
from torch import Tensor, nn

from coreai_recipes.primitives.alibi import round_to_bfloat16
from coreai_recipes.primitives.registry import primitive, register
from coreai_recipes.primitives.rotary_operation import turn_by_angles, turn_by_positions
from coreai_recipes.recipe import schema
from coreai_recipes.recipe.schema import NoRotary, RotaryFold

TurningSpec = schema.FullRotary | schema.PartialRotary | schema.ProportionalRotary
RotarySpec = TurningSpec | NoRotary
WHOLE_HEAD_KINDS = ("full", "partial", "proportional")
Shape = tuple[int, ...]


def inverse_frequencies(spec: TurningSpec, head_dim: int, context: int | None = None) -> Tensor:
    """Angular frequency of each pair, radians a position, float32: (D/2,) for `full` and `proportional`, (R/2,) for
    `partial`.

    `context` is how many positions a session holds, by which longrope chooses its factors; the short ones if unsaid.

    `partial` divides the exponent by its own width R = int(factor * D); `proportional` divides it by D and pads with
    zeros: the zero pairs pass through unrotated, and pair i always holds dimensions i and i + D/2. The arithmetic is
    that of transformers' modeling_rope_utils, operation by operation, so that the bits are the same.
    """
    if isinstance(spec, schema.ProportionalRotary):
        turning = int(spec.factor * head_dim // 2)
        inv_freq = torch.cat(
            (_series(spec.theta, head_dim, turning), torch.zeros(head_dim // 2 - turning, device="cpu"))
        )
    else:
        return _scaled_series(spec, context, 2 * turning_pairs(spec, head_dim))
    return inv_freq if spec.scaling is None else inv_freq / spec.scaling.factor


def attention_factor(spec: RotarySpec) -> float:
    """What cos and sin are multiplied by, so that long texts do not flatten the scores (yarn and longrope)."""
    scaling = None if isinstance(spec, NoRotary) else spec.scaling
    return scaling.angle_factor if isinstance(scaling, schema.YarnScaling | schema.LongRopeScaling) else 1.0


def turning_pairs(spec: RotarySpec, head_dim: int) -> int:
    """How many pairs really turn: those of `proportional` whose frequency is not zero, all of the others."""
    if isinstance(spec, NoRotary):
        return 0
    if isinstance(spec, schema.ProportionalRotary):
        return int(spec.factor * head_dim // 2)
    return int(spec.factor * head_dim) // 2 if isinstance(spec, schema.PartialRotary) else head_dim // 2


def fold_order(spec: RotarySpec, head_dim: int, fold: RotaryFold | None = "contiguous") -> tuple[int, ...] | None:
    """The dimensions of a head in the order that a folded rotary wants, None where they stand so already.

    `contiguous`, pairs (i, i + R/2): the first dimensions of all pairs that turn, those they are paired with, the rest
    (Gemma 4's global layers then turn 128 of 512 dimensions). `whole_head`, pairs (i, i + D/2): half of the rest stands
    behind either.
    """
    if isinstance(spec, NoRotary) or not fold:
        return None
    pairs = turning_pairs(spec, head_dim)
    if isinstance(spec, schema.ProportionalRotary):
        first, second = range(pairs), range(head_dim // 2, head_dim // 2 + pairs)
    elif spec.pairing == "interleaved":
        first, second = range(0, 2 * pairs, 2), range(1, 2 * pairs, 2)
    else:
        first, second = range(pairs), range(pairs, 2 * pairs)
    rest = sorted({*range(head_dim)} - {*first, *second})
    between = len(rest) // 2 if turns_whole_head(spec, fold) else 0
    order = (*first, *rest[:between], *second, *rest[between:])
    return None if order == (*range(head_dim),) else order


def turns_whole_head(spec: RotarySpec, fold: RotaryFold | None) -> bool:
    """Whether a rotary is one operation over the whole head: a plugin's own is what its class makes of it."""
    return fold == "whole_head" and spec.kind in WHOLE_HEAD_KINDS


def _series(theta: float, width: int, pairs: int) -> Tensor:
    """theta^(-2i / width) for i = 0 .. pairs - 1."""
    return 1.0 / (theta ** _exponents(width, pairs))


def _exponents(width: int, pairs: int) -> Tensor:
    return torch.arange(0, 2 * pairs, 2, dtype=torch.int64, device="cpu").float() / width


def _scaled_series(spec: schema.FullRotary | schema.PartialRotary, context: int | None, width: int) -> Tensor:
    """The frequencies of `width` dimensions, with the spec's scaling."""
    theta, pairs = spec.theta, width // 2
    match spec.scaling:
        case schema.LinearScaling(factor=factor):
            return _series(theta, width, pairs) / factor
        case schema.Llama3Scaling() as scaling:
            return _scale_llama3(_series(theta, width, pairs), scaling)
        case schema.DynamicScaling(factor=factor, original_context=trained):
            # 1 but for its rounding, which transformers takes too
            growth = (factor * trained / trained) - (factor - 1)
            return _series(theta * growth ** (width / (width - 2)), width, pairs)
        case schema.NTKScaling(alpha=alpha):
            return _series(theta * alpha ** (width / (width - 2)), width, pairs)
        case schema.YarnScaling() as scaling:
            return _scale_yarn(theta, width, scaling)
        case schema.LongRopeScaling() as scaling:
            factors = scaling.long_factor if scaling.is_long(context) else scaling.short_factor
            divisors = torch.tensor(factors, dtype=torch.float32, device="cpu")
            return 1.0 / (divisors * theta ** _exponents(width, pairs))
    return _series(theta, width, pairs)


def _scale_yarn(theta: float, width: int, scaling: schema.YarnScaling) -> Tensor:
    """Pairs before the ramp are kept, those behind it divided by factor; the ramp runs from the pair that turns
    beta_fast times in the original context to that which turns beta_slow times (arXiv 2309.00071)."""

    def pair_of(turns: float) -> float:
        return (width * math.log(scaling.original_context / (turns * 2 * math.pi))) / (2 * math.log(theta))

    first, last = pair_of(scaling.beta_fast), pair_of(scaling.beta_slow)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, width - 1)
    if first == last:
        last += 0.001
    ramp = (torch.arange(width // 2, dtype=torch.float32, device="cpu") - first) / (last - first)
    wavelengths = theta ** _exponents(width, width // 2)
    kept = 1 - torch.clamp(ramp, 0, 1)
    return 1.0 / (scaling.factor * wavelengths) * (1 - kept) + 1.0 / wavelengths * kept


def _scale_llama3(inv_freq: Tensor, scaling: schema.Llama3Scaling) -> Tensor:
    """Wavelengths beyond original_context / low_freq_factor are stretched by factor, those below
    original_context / high_freq_factor kept, and the ones between interpolated (Llama 3.1)."""
    longest = scaling.original_context / scaling.low_freq_factor
    shortest = scaling.original_context / scaling.high_freq_factor
    wavelength = 2 * math.pi / inv_freq
    stretched = torch.where(wavelength > longest, inv_freq / scaling.factor, inv_freq)
    smooth = (scaling.original_context / wavelength - scaling.low_freq_factor) / (
        scaling.high_freq_factor - scaling.low_freq_factor
    )
    between = (1 - smooth) * stretched / scaling.factor + smooth * stretched
    is_between = ~(wavelength < shortest) * ~(wavelength > longest)
    return torch.where(is_between, between, stretched)


# What a precision makes of float32. No program of Core ML has bfloat16: its 8 bits are taken by arithmetic.
_ROUNDING: dict[str, Callable[[Tensor], Tensor]] = {
    "float32": lambda x: x,
    "float16": lambda x: x.half().float(),
    "bfloat16": round_to_bfloat16,
}


class Rotary(nn.Module):
    """Turns pairs of each head's dimensions by an angle that grows with the position.

    The frequencies are neither parameter nor buffer but Python floats that hold float32 values: `.half()`,
    `.to(bfloat16)`, `state_dict()` and tracing cannot reach them (as a buffer cast to bfloat16 they are wrong by 0.35
    of a cosine at position 200). `Rotary(spec, head_dim)` gives the registered class of `spec.kind`.

    `folded` is the same rotation of heads whose dimensions stand in `fold_order`: the pairs that turn come first, as
    (i, i + R/2), and keep their frequencies to the bit. `context` is how many positions a session holds.
    """

    def __new__(cls, spec: RotarySpec, head_dim: int, folded: bool = False, context: int | None = None) -> Self:
        chosen = primitive("rotary", spec.kind) if cls is Rotary else cls
        return cast(Self, super().__new__(chosen))

    spec: TurningSpec

    def __init__(self, spec: TurningSpec, head_dim: int, folded: bool = False, context: int | None = None) -> None:
        super().__init__()
        self.spec = spec
        self.head_dim = head_dim
        self.pairing = "half" if folded else spec.pairing
        self.attention_factor = attention_factor(spec)
        inv_freq = inverse_frequencies(spec, head_dim, context)
        self.inv_freq: tuple[float, ...] = tuple(
            (inv_freq[: turning_pairs(spec, head_dim)] if folded else inv_freq).tolist()
        )

    def angles(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin at integer `positions` (B, S): float32 (B, S, R/2), for `proportional` (B, S, D/2)."""
        rounded = _ROUNDING[self.spec.precision]
        inv_freq = torch.tensor(self.inv_freq, dtype=torch.float32, device=positions.device)
        angles = rounded(rounded(positions[..., None].float()) * rounded(inv_freq))
        return rounded(self._scaled(angles.cos())), rounded(self._scaled(angles.sin()))

    def _scaled(self, x: Tensor) -> Tensor:
        return x if self.attention_factor == 1.0 else x * self.attention_factor

    def ports(self, tokens: int) -> dict[str, Shape]:
        """What layers of this rotary are given in a call of so many tokens, by name (`LayerInputs`)."""
        pairs = len(self.inv_freq)
        return dict.fromkeys(("cos", "sin"), (1, pairs, 1, tokens)) if pairs else {}

    def given(self, positions: Tensor) -> dict[str, Tensor]:
        """The same of integer `positions` (S,): cos and sin (1, R/2, 1, S)."""
        cos, sin = self.angles(positions.unsqueeze(0))
        return {"cos": cos.transpose(1, 2).unsqueeze(2), "sin": sin.transpose(1, 2).unsqueeze(2)}

    def turn(self, x: Tensor, given: tuple[Tensor, ...]) -> Tensor:
        """x (H, D, 1, S) turned by what its layer was `given`, in x's dtype."""
        cos, sin = given
        return self.rotate_along(x, cos, sin, 1)

    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x (B, H, S, D) turned by cos and sin (B, S, R/2), in x's dtype."""
        return self.rotate_along(x, cos.unsqueeze(1), sin.unsqueeze(1), -1)

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        """x (B, H, S, D) turned at integer `positions` (B, S), in x's dtype."""
        return self.rotate(x, *self.angles(positions))

    def rotate_along(self, x: Tensor, cos: Tensor, sin: Tensor, axis: int) -> Tensor:
        """x turned along `axis`, whose size is D; cos and sin broadcast against x, their `axis` holding the pairs.

        In the engine's layout x is (H, D, 1, S), cos and sin are (1, R/2, 1, S) and the axis is 1.
        """
        dtype = x.dtype
        if self.spec.product != "float32":
            cos, sin = cos.to(dtype), sin.to(dtype)
        if self.spec.product != "model":
            x, cos, sin = x.float(), cos.float(), sin.float()
        return self._turn(x, cos, sin, axis).to(dtype)

    def _turn(self, x: Tensor, cos: Tensor, sin: Tensor, axis: int) -> Tensor:
        """The pairs that turn, in place among the dimensions that pass."""
        axis %= x.dim()
        pairs, width = len(self.inv_freq), x.shape[axis]
        rest = [x.narrow(axis, 2 * pairs, width - 2 * pairs)] if 2 * pairs < width else []
        if self.pairing == "half":
            pair = x.narrow(axis, 0, pairs), x.narrow(axis, pairs, pairs)
            return torch.cat((*self._turn_pair(*pair, cos, sin), *rest), axis)
        of_pairs = x.narrow(axis, 0, 2 * pairs).unflatten(axis, (pairs, 2))  # type: ignore[no-untyped-call]
        first, second = of_pairs.select(axis + 1, 0), of_pairs.select(axis + 1, 1)
        turned = torch.stack(self._turn_pair(first, second, cos, sin), axis + 1)
        return torch.cat((turned.flatten(axis, axis + 1), *rest), axis)

    def _turn_pair(self, first: Tensor, second: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """By the angle, or by minus it."""
        if self.spec.backwards:
            return first * cos + second * sin, second * cos - first * sin
        return first * cos - second * sin, second * cos + first * sin


class WholeHeadRotary(Rotary):
    """The same rotation as one operation of a program, over heads whose dimensions stand in whole-head order.

    Pairs are (i, i + D/2), with a frequency for each, zero where nothing turns. The operation takes positions and makes
    the angles itself, or takes cos and sin where these are not just those of float32 angles.
    """

    def __init__(self, spec: TurningSpec, head_dim: int, context: int | None = None) -> None:
        super().__init__(spec, head_dim, True, context)
        self.turning = len(self.inv_freq)
        self.inv_freq += (0.0,) * (head_dim // 2 - self.turning)
        self.takes_positions = self.attention_factor == 1.0 and spec.precision == "float32" and spec.product == "model"

    def ports(self, tokens: int) -> dict[str, Shape]:
        return {"positions": (1, tokens)} if self.takes_positions else super().ports(tokens)

    def given(self, positions: Tensor) -> dict[str, Tensor]:
        return {"positions": positions.unsqueeze(0)} if self.takes_positions else super().given(positions)

    def turn(self, x: Tensor, given: tuple[Tensor, ...]) -> Tensor:
        if not self.takes_positions:
            return super().turn(x, given)
        (positions,), sign = given, -1.0 if self.spec.backwards else 1.0
        inv_freq = [sign * each for each in self.inv_freq]
        return _channels_first(turn_by_positions(_heads_first(x), positions, inv_freq))

    def _scaled(self, x: Tensor) -> Tensor:
        if self.attention_factor == 1.0:
            return x
        still = len(self.inv_freq) - self.turning  # their cosine stays 1
        factors = [self.attention_factor] * self.turning + [1.0] * still
        return x * torch.tensor(factors, dtype=torch.float32, device=x.device)

    def _turn(self, x: Tensor, cos: Tensor, sin: Tensor, axis: int) -> Tensor:
        sin = -sin if self.spec.backwards else sin
        if axis % x.dim() == 3:
            return turn_by_angles(x, cos, sin)
        return _channels_first(turn_by_angles(*map(_heads_first, (x, cos, sin))))


def _heads_first(x: Tensor) -> Tensor:
    return x.permute(2, 0, 3, 1)  # (H, D, 1, S) -> (1, H, S, D)


def _channels_first(x: Tensor) -> Tensor:
    return x.permute(1, 3, 0, 2)  # (1, H, S, D) -> (H, D, 1, S)


def build_rotary(spec: RotarySpec, head_dim: int, fold: RotaryFold | None = None, context: int | None = None) -> Rotary:
    """The registered rotary of `spec`, for whichever kind, of heads whose dimensions stand in this order."""
    turning = cast(TurningSpec, spec)
    if turns_whole_head(spec, fold):
        return WholeHeadRotary(turning, head_dim, context)
    return Rotary(turning, head_dim, bool(fold), context)


@register("rotary", "full")
class FullRotary(Rotary):
    """Every dimension turns: pairs (i, i + D/2), or (2i, 2i + 1) interleaved."""


@register("rotary", "partial")
class PartialRotary(Rotary):
    """The first R = int(factor * D) dimensions turn, paired among themselves; the rest passes."""


@register("rotary", "proportional")
class ProportionalRotary(Rotary):
    """Pairs (i, i + D/2) over the whole head, of which the last have frequency zero (Gemma 4's global layers)."""


@register("rotary", "none")
class NoRotation(Rotary):
    """Nothing turns: cos and sin are empty, and x passes."""

    def __init__(self, spec: NoRotary, head_dim: int, folded: bool = False, context: int | None = None) -> None:
        nn.Module.__init__(self)
        self.head_dim, self.pairing = head_dim, "half"
        self.inv_freq = ()

    def angles(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        empty = torch.empty(*positions.shape, 0, dtype=torch.float32, device=positions.device)
        return empty, empty

    def rotate_along(self, x: Tensor, cos: Tensor, sin: Tensor, axis: int) -> Tensor:
        return x
