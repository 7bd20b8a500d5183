"""One layer of a kind: its blocks on the residual stream, with their norms where the recipe puts them."""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from coreai_recipes.primitives.altup import AltUp, Laurel
from coreai_recipes.primitives.attention import build_attention, build_state_space
from coreai_recipes.primitives.cache import Cache
from coreai_recipes.primitives.constants import scaled
from coreai_recipes.primitives.experts import build_experts
from coreai_recipes.primitives.layer_inputs import LayerInputs
from coreai_recipes.primitives.mlp import build_mlp
from coreai_recipes.primitives.norm import build_norm
from coreai_recipes.primitives.per_layer import PerLayerGate
from coreai_recipes.recipe.schema import AltUp as AltUpSpec
from coreai_recipes.recipe.schema import LayerNorm, PerLayerEmbedding, Residual, RMSNorm, RotaryFold, Stack

# MLPs that do the same to each token, wherever it lies.
POINTWISE = ("gated", "plain")
SQUARE = 8
# placements where a norm takes what attention gives, or what the MLP gives, and that alone
NORMED_BEHIND = ("post", "sandwich")
MLP_NORMED_BEHIND = (*NORMED_BEHIND, "sandwich_mlp")


@dataclass(frozen=True)
class Form:
    """How the modules of a recipe are to be built: as the reference has them, or rewritten for export.

    Attributes:
        folded: how the dimensions of heads stand (`rotary.fold_order`), None as the reference has them.
        residual_scale: the residual stream, what reads it and what is written to it, is scaled by this power of two.
        mlp_scale: what a gated MLP multiplies is scaled by this power of two, and its last matrix, or the norm behind
            it, undoes that.
        head_scale: what the head's norm gives is scaled by this power of two, and its logits undo it.
        mlp_in_square: the 64 tokens of a call lie as 8 x 8 in an MLP without experts.
        mirrored: RMS norms are the layer norm of (x, -x).
        regrouped: channels of MLPs stand in the order of their size (`weights.regrouping`).
        float32: what of each layer is computed in float32 (`primitives.float32`).
    """

    folded: RotaryFold | None = None
    residual_scale: float = 1.0
    mlp_scale: float = 1.0
    head_scale: float = 1.0
    mlp_in_square: bool = False
    mirrored: bool = False
    regrouped: bool = False
    float32: tuple[str, ...] = ()

    def of_stream(self, norm: RMSNorm | LayerNorm) -> RMSNorm | LayerNorm:
        """The norm of a scaled stream: with eps scaled along, its result is the same to the bit."""
        return _of_scaled(norm, self.residual_scale)

    def of_mlp(self, norm: RMSNorm | LayerNorm, placement: str) -> RMSNorm | LayerNorm:
        """The norm behind an MLP, in the same way where the MLP leaves its scale to it."""
        return _of_scaled(norm, self.mlp_scale) if placement in MLP_NORMED_BEHIND else norm


def _of_scaled(norm: RMSNorm | LayerNorm, scale: float) -> RMSNorm | LayerNorm:
    return norm.model_copy(update={"eps": norm.eps * scale**2})


PLAIN = Form()


class Layer(nn.Module):
    """x (1, C, 1, S) -> (1, C, 1, S); `per_layer` (1, P, 1, S) is the layer's own input, where the model has such.

    With `altup` the stream is (N, C, 1, S), of which the blocks compute one.
    """

    def __init__(
        self,
        stack: Stack,
        name: str,
        per_layer: PerLayerEmbedding | None = None,
        form: Form = PLAIN,
        altup: AltUpSpec | None = None,
        laurel_rank: int | None = None,
    ) -> None:
        super().__init__()
        kind, norm, hidden_size = stack.kinds[name], stack.norm_of(name), stack.hidden_size
        stream_norm = form.of_stream(norm)
        placement = stack.placement_of(name)
        before, behind = placement not in ("post", "add"), placement in (*NORMED_BEHIND, "add")
        self.kind, self.placement, self.multiplier = name, placement, stack.residual_multiplier
        self.attention_residual, self.mlp_residual = kind.attention_residual, kind.mlp_residual
        # what a norm gives has lost the stream's scale
        self.norm_scale = form.residual_scale if placement == "from_norm" else 1.0
        self.begins = kind.attention.kind != "none"
        norms_attention = before and placement != "pre_mlp" and self.begins
        self.attention_norm = build_norm(stream_norm, hidden_size) if norms_attention else nn.Identity()
        self.attention = build_attention(kind, hidden_size, norm, form.folded)
        self.state_space = build_state_space(kind, hidden_size, norm)
        self.attention_post_norm = build_norm(norm, hidden_size) if behind else nn.Identity()
        self.laurel = Laurel(laurel_rank, hidden_size, norm, form.residual_scale) if laurel_rank else None
        self.altup = AltUp(altup, hidden_size, norm, stream_norm, per_layer is not None) if altup else None
        self.ends = kind.mlp.kind == "none"
        norms_mlp = before and placement != "parallel" and not self.ends
        self.mlp_norm = build_norm(stream_norm, hidden_size) if norms_mlp else nn.Identity()
        self.mlp = build_mlp(kind.mlp, hidden_size)
        self.mlp_in_square = form.mlp_in_square and kind.mlp.kind in POINTWISE
        of_mlp = form.of_mlp(norm, placement)
        self.dense_post_norm = build_norm(of_mlp, hidden_size) if kind.experts else None
        self.experts = build_experts(kind.experts, hidden_size, norm, stream_norm) if kind.experts else None
        mlp_behind = placement in (*MLP_NORMED_BEHIND, "add")
        self.mlp_post_norm = build_norm(norm if kind.experts else of_mlp, hidden_size) if mlp_behind else nn.Identity()
        self.per_layer = PerLayerGate(per_layer, hidden_size, norm) if per_layer else None
        self.scalar = nn.Parameter(torch.empty(1, 1, 1, 1), requires_grad=False) if stack.layer_scalar else None

    def forward(self, x: Tensor, given: LayerInputs, cache: Cache, per_layer: Tensor | None = None) -> Tensor:
        if self.altup is None:
            x = self._blocks(x, given, cache)
            if self.per_layer is not None:
                x = x + self.per_layer(x, per_layer)
        else:
            predicted = self.altup.predict(x)
            x = self.altup.correct(predicted, self._blocks(self.altup.active_of(predicted), given, cache))
            if self.per_layer is not None and per_layer is not None:
                x = self.altup.add_rows(x, partial(self.per_layer, of_layer=per_layer))
        return x if self.scalar is None else x * self.scalar

    def _blocks(self, x: Tensor, given: LayerInputs, cache: Cache) -> Tensor:
        """x (1, C, 1, S) behind attention and MLP."""
        if not self.begins:
            return self._join(x, self._of_mlp(self.mlp_norm(x)), self.mlp_post_norm, self.mlp_residual)
        n = self.attention_norm(x)
        y = self.attention(n, given, cache)
        if self.state_space is not None:
            y = y + self.state_space(n, given, cache)
        if self.placement.startswith("parallel"):
            x = x + scaled(y + self._of_mlp(n if self.placement == "parallel" else self.mlp_norm(x)), self.multiplier)
        else:
            x = self._join(
                n if self.placement == "from_norm" else x, y, self.attention_post_norm, self.attention_residual
            )
            if self.ends:
                return x
            if self.laurel is not None:
                x = scaled(x + self.laurel(n), 2**-0.5)
            n = self.mlp_norm(x)
            y = self._of_mlp(n)
            if self.experts is not None and self.dense_post_norm is not None:
                y = self.dense_post_norm(y) + self.experts(x)
            x = n if self.placement == "from_norm" else x
            x = self._join(x, y, self.mlp_post_norm, self.mlp_residual)
        return x

    def _of_mlp(self, x: Tensor) -> Tensor:
        """What the MLP makes of x (1, C, 1, S): of 64 tokens as a square, where the form says so."""
        if not self.mlp_in_square or x.shape[3] != SQUARE**2:
            return self.mlp(x)  # type: ignore[no-any-return]
        out: Tensor = self.mlp(x.view(1, -1, SQUARE, SQUARE))
        return out.view(x.shape)

    def _join(self, x: Tensor, y: Tensor, norm: nn.Module, factors: Residual) -> Tensor:
        """The residual stream and what a block adds to it, with the norm that stands behind, if any."""
        x, of_block = scaled(x, factors.stream * self.norm_scale), factors.block * self.multiplier
        if self.placement == "add":
            return norm(x + scaled(y, of_block))  # type: ignore[no-any-return]
        return x + scaled(norm(y), of_block)
