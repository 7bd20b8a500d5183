"""Float16 products as Core AI's runtime on Linux takes them, for transformers to take them alike.

A product of two tensors that a call computes is scalar code there: each product of two numbers is rounded to float16,
and added in float16 to those before it, from the first to the last. All else is float32 inside and rounded once: the
convolutions that weights are in, sums, means, softmax. Of weights only those of experts are in such products.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

EXPERTS = "Experts"  # how the names of transformers' modules end that hold the weights of experts


def multiply(a: Tensor, b: Tensor) -> Tensor:
    """a (..., M, K) times b (..., K, N), both float16: each step is rounded, the first of K first."""
    shape = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])  # type: ignore[no-untyped-call]
    total = torch.zeros(*shape, a.shape[-2], b.shape[-1], dtype=torch.float16)
    for column, row in zip(a.unbind(-1), b.unbind(-2), strict=True):
        total += column.unsqueeze(-1) * row.unsqueeze(-2)
    return total


class SumsInFloat16(TorchFunctionMode):
    """While it is entered, products of activations are `multiply`'s, and so are those of `experts`' weights."""

    def __init__(self) -> None:
        super().__init__()
        self._experts = 0  # how many modules of experts are being run

    def watch(self, model: nn.Module) -> None:
        """Note when the experts of `model` run."""
        for module in model.modules():
            if type(module).__name__.endswith(EXPERTS):
                module.register_forward_pre_hook(self._enter)
                module.register_forward_hook(self._leave)

    def _enter(self, *_: object) -> None:
        self._experts += 1

    def _leave(self, *_: object) -> None:
        self._experts -= 1

    def __torch_function__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        named = named or {}
        ours = _OURS.get(function)
        if ours is None or (function is F.linear and not self._experts) or not _is_half(arguments, named):
            return function(*arguments, **named)
        return ours(*arguments, **named)


def _is_half(arguments: tuple[Any, ...], named: dict[str, Any]) -> bool:
    tensors = [each for each in (*arguments, *named.values()) if isinstance(each, Tensor)]
    return all(each.dtype == torch.float16 for each in tensors if each.is_floating_point())


def _matmul(input: Tensor, other: Tensor) -> Tensor:
    """Weights are no factor of it: their products are others' (`F.linear`), and rounded once."""
    if input.dim() < 3 or other.dim() < 3:
        return torch.matmul(input, other)
    return multiply(input, other)


def _baddbmm(input: Tensor, batch1: Tensor, batch2: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    return beta * input + alpha * multiply(batch1, batch2)


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    product = multiply(weight, input.transpose(-1, -2)).transpose(-1, -2)
    return product if bias is None else product + bias


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """What torch documents of `scaled_dot_product_attention`."""
    if enable_gqa:
        shared = query.shape[-3] // key.shape[-3]
        key, value = (each.repeat_interleave(shared, -3) for each in (key, value))
    scores = multiply(query, key.transpose(-1, -2)) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, float("-inf"))
    elif attn_mask is not None:
        scores = scores + attn_mask
    return multiply(torch.softmax(scores, -1, dtype=torch.float32).half(), value)


_OURS: dict[Any, Callable[..., Tensor]] = {
    torch.matmul: _matmul,
    torch.bmm: _matmul,
    Tensor.matmul: _matmul,
    Tensor.bmm: _matmul,
    Tensor.__matmul__: _matmul,
    torch.baddbmm: _baddbmm,
    Tensor.baddbmm: _baddbmm,
    F.linear: _linear,
    F.scaled_dot_product_attention: _attend,
}
