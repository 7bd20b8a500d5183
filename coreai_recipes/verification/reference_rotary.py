"""How transformers turns queries and keys, family by family: the function of its modeling file, and its tables."""

import inspect
import sys
from collections.abc import Callable

import torch
from torch import Tensor, nn


class UnknownStructure(Exception):
    """A transformers model that is not put together as the decoders that we know; the message says what was missing."""


def rotary_function(layer: nn.Module) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """`rotate(x, cos, sin)`, x (1, H, S, D), by the function that the layer's own modeling file uses.

    Families pass q and k together or one tensor, and hand over the whole head or only the part that turns.
    """
    apply = getattr(sys.modules[type(layer).__module__], "apply_rotary_pos_emb", None)
    interleaved = getattr(sys.modules[type(layer).__module__], "apply_rotary_pos_emb_interleave", None)
    config = getattr(getattr(layer, "self_attn", None), "config", None)
    if interleaved is not None and getattr(config, "rope_interleave", True):

        def rotate_pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
            """As they leave, the first ones of all pairs come before the second ones."""
            return interleaved(x, x, cos, sin)[0].unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2)  # type: ignore[no-any-return]

        return rotate_pairs
    if apply is None:
        raise UnknownStructure(f"{type(layer).__module__} has no apply_rotary_pos_emb")
    names = list(inspect.signature(apply).parameters)
    takes_both = names[:2] == ["q", "k"]
    if names == ["tensor", "sin", "cos"]:  # GPT-J's and CodeGen's: heads after positions, one angle for each pair

        def rotate_first(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
            width = 2 * cos.shape[-1]
            turned = apply(x[..., :width].transpose(1, 2), sin, cos).transpose(1, 2)
            return torch.cat((turned.to(x.dtype), x[..., width:]), -1)

        return rotate_first

    def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return apply(x, x, cos, sin)[0] if takes_both else apply(x, cos, sin)  # type: ignore[no-any-return]

    def rotate_part(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        width = cos.shape[-1]
        try:
            return rotate(x, cos, sin)
        except RuntimeError:  # the sizes do not fit: this family splits the head before it calls
            return torch.cat((rotate(x[..., :width], cos, sin), x[..., width:]), -1)

    return rotate_part


def angles_of_layer(layer: nn.Module, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor] | None:
    """cos and sin that a layer makes of positions by itself, None where it does not: RecurrentGemma's, (1, S, R), by a
    module of its own, GPT-J's and CodeGen's, (1, S, R/2), from a table, half sines, half cosines."""
    makes = next((module for name, module in layer.named_modules() if name.endswith("rotary_emb")), None)
    if makes is not None:
        found: tuple[Tensor, Tensor] = makes(torch.empty(0, dtype=dtype), positions[None])
        return found
    table = next((buffer for name, buffer in layer.named_buffers() if name.endswith("embed_positions")), None)
    if table is None:
        return None
    sin, cos = table[positions][None].chunk(2, -1)
    # CodeGen leaves them in float32, and what they turn
    return (cos, sin) if type(layer).__name__.startswith("CodeGen") else (cos.to(dtype), sin.to(dtype))


def pairs_apart(x: Tensor, turning: int) -> Tensor:
    """Heads (..., D) whose last dimensions were turned in place (DeepSeek V2), as V3 leaves them: the first ones of all
    pairs before the second ones."""
    passing, turned = x[..., :-turning], x[..., -turning:]
    return torch.cat((passing, turned[..., 0::2], turned[..., 1::2]), -1)
