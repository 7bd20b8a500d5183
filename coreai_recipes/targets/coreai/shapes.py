"""Shapes, strides and types of what ATen operations give, by rules that need no more of torch than is imported.

torch's own rules for tensors without values are in Python and import sympy and torch's compiler, which takes longer
than all conversions of a model. These are the same for the operations of decoders, which a test holds; where one of
them is not sure, or there is none, torch's own is asked (`shapes_of`).
"""

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

aten = torch.ops.aten
CPU, META = torch.device("cpu"), torch.device("meta")
FEW = 1 << 20  # elements of what depends on no tensor, as a range of positions: it is made
REDUCTIONS = {aten.amax.default, aten.mean.dim, aten.sum.dim_IntList}
COPIES = {aten.clone.default, aten._to_copy.default}
Rule = Callable[..., Tensor | None]


def shapes_of(function: Any, args: Any, kwargs: Any) -> Any:
    """What an operation gives of tensors on the device `meta`, on it too."""
    found = _known(function, args, kwargs)
    if found is None:
        if any(argument.name == "device" for argument in function._schema.arguments):
            kwargs = {**kwargs, "device": META}
        found = function(*args, **kwargs)
    return found


def _known(function: Any, args: Any, kwargs: Any) -> Any:
    tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
    if function.is_view:
        return function(*args, **kwargs)  # these are in C++
    if not tensors:
        return _made(function, args, kwargs)
    if function in COPIES or torch.Tag.pointwise in function.tags:
        return _pointwise(function, args, kwargs, tensors)
    if function in REDUCTIONS:
        return _reduced(function, args, kwargs)
    rule = RULES.get(function)
    return rule(*args, **kwargs) if rule else None


def _made(function: Any, args: Any, kwargs: Any) -> Tensor | None:
    sizes = [size for each in args for size in (each if isinstance(each, list | tuple) else (each,))]
    if not all(isinstance(size, int | float) for size in sizes) or prod(max(1, int(size)) for size in sizes) > FEW:
        return None
    made: Tensor = function(*args, **{**kwargs, "device": CPU})
    return _empty(made.shape, made.dtype)


def _pointwise(function: Any, args: Any, kwargs: Any, tensors: Sequence[Tensor]) -> Tensor | None:
    """The type is that of one element. The axes lie in memory as the first operand has them, if it is not stretched."""
    shape, first = _broadcast([each.shape for each in tensors]), tensors[0]
    if shape is None:
        return None
    order, strides = list(range(len(shape))), first.stride()
    if kwargs.get("memory_format", torch.preserve_format) != torch.contiguous_format:
        if first.shape == shape and 0 not in strides:
            order.sort(key=lambda axis: -strides[axis])
        elif not all(map(_falls, tensors)):
            return None
    on_processor = {"device": CPU} if "device" in kwargs else {}
    one = function(*tree_map(_one, args), **{**tree_map(_one, kwargs), **on_processor})
    return _laid_out(shape, order, one.dtype)


def _laid_out(shape: Sequence[int], order: Sequence[int], dtype: torch.dtype) -> Tensor:
    strides, count = [1] * len(shape), 1
    for axis in reversed(order):
        strides[axis] = count
        count *= shape[axis]
    return torch.empty_strided(shape, strides, dtype=dtype, device=META)


def _one(value: Any) -> Any:
    return torch.ones((1,) * value.dim(), dtype=value.dtype) if isinstance(value, Tensor) else value


def _falls(tensor: Tensor) -> bool:
    """Whether its axes lie in memory one after another, but for those along which it is stretched."""
    strides = [stride for stride, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1 and stride]
    return strides == sorted(strides, reverse=True)


def _broadcast(shapes: Sequence[torch.Size]) -> torch.Size | None:
    """As torch.broadcast_shapes, which imports sympy; None for shapes that do not fit."""
    rank = max(map(len, shapes))
    padded = [(1,) * (rank - len(shape)) + tuple(shape) for shape in shapes]
    found = [set(sizes) - {1} or {1} for sizes in zip(*padded, strict=True)]
    return None if any(len(sizes) > 1 for sizes in found) else torch.Size(size for (size,) in found)


def _reduced(function: Any, args: Any, kwargs: Any) -> Tensor:
    x, axes = args[0], args[1]
    keeps = args[2] if len(args) > 2 else kwargs.get("keepdim", False)
    reduced = {axis % x.dim() for axis in (axes or range(x.dim()))}
    shape = [1 if axis in reduced else size for axis, size in enumerate(x.shape) if keeps or axis not in reduced]
    return _empty(shape, function(*tree_map(_one, args), **kwargs).dtype)


def _empty(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=META)


def _bmm(a: Tensor, b: Tensor) -> Tensor:
    return _empty((*a.shape[:-1], b.shape[-1]), a.dtype)


def _softmax(x: Tensor, axis: int, is_half_to_float: bool) -> Tensor:
    return _empty(x.shape, torch.float32 if is_half_to_float else x.dtype)


def _embedding(table: Tensor, ids: Tensor, *_: object) -> Tensor:
    return _empty((*ids.shape, *table.shape[1:]), table.dtype)


def _index_select(x: Tensor, axis: int, index: Tensor) -> Tensor:
    shape = list(x.shape)
    shape[axis] = index.numel()
    return _empty(shape, x.dtype)


def _cat(tensors: Sequence[Tensor], axis: int = 0) -> Tensor | None:
    first = tensors[0]
    if len({(each.dtype, each.dim()) for each in tensors}) > 1:
        return None
    shape = list(first.shape)
    shape[axis] = sum(each.shape[axis] for each in tensors)
    return _empty(shape, first.dtype)


def _convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    *_: object,
) -> Tensor | None:
    if transposed:
        return None
    sizes = [
        (size + 2 * pad - dilated * (kernel - 1) - 1) // step + 1
        for size, kernel, step, pad, dilated in zip(
            x.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True
        )
    ]
    return _empty((x.shape[0], weight.shape[0], *sizes), x.dtype)


RULES: dict[Any, Rule] = {
    aten.bmm.default: _bmm,
    aten.mm.default: _bmm,
    aten._softmax.default: _softmax,
    aten.embedding.default: _embedding,
    aten.index_select.default: _index_select,
    aten.cat.default: _cat,
    aten.convolution.default: _convolution,
}
