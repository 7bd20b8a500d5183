"""Matrix products: matmul, linear, conv, einsum, attention."""

import math
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as functional
from torch import Tensor

from coreai_recipes.evaluate.counting import SOFTMAX, Sizes, elements
from coreai_recipes.evaluate.opset import Call, Kernel, Node, Operand, operation
from coreai_recipes.evaluate.precision import Arithmetic, Float16Arithmetic

CONVOLUTIONS = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
# A streamed matrix of more than this, as float32, is multiplied some rows at a time: heads are larger than layers.
STREAMED_BYTES = 16 << 20
# Finite in float16 and small enough that its exponential is zero.
MASKED = -30000.0


def _row_blocks(call: Call, weight: Operand) -> Callable[[], Iterator[Tensor]] | None:
    """What reads a large streamed matrix (O, C, ...) in blocks of whole rows (o, C), or None where it is not one."""
    source, (outputs, *rest) = weight.source, weight.shape
    if not call.streams or isinstance(source, str) or not source.is_large:
        return None
    columns = math.prod(rest)
    count = max(1, STREAMED_BYTES // (4 * columns))
    if count >= outputs or source.rows([0]) is None:
        return None

    def read() -> Iterator[Tensor]:
        for first in range(0, outputs, count):
            rows = source.rows(list(range(first, min(first + count, outputs))))
            if rows is not None:
                yield rows.float().reshape(-1, columns)

    return read


def _matmul_flops(node: Node, sizes: Sizes) -> int:
    shape = sizes.operand(node, "x").shape
    inner = shape[-2] if sizes.parameter(node, "transpose_x") else shape[-1]
    return 2 * inner * elements(sizes.result(node))


@operation("matmul", flops=_matmul_flops)
def prepare_matmul(call: Call) -> Kernel:
    matmul = call.arithmetic.matmul
    operands = [call.operand("x"), call.operand("y")]
    transpose_x, transpose_y = call.flag("transpose_x"), call.flag("transpose_y")
    streamed = _stacked_matmul(call, transpose_x, transpose_y)
    if streamed is not None:
        return streamed
    if transpose_x and transpose_y:
        return Kernel(lambda x, y: matmul(x.mT, y.mT), operands)
    if transpose_x:
        return Kernel(lambda x, y: matmul(x.mT, y), operands)
    if transpose_y:
        return Kernel(lambda x, y: matmul(x, y.mT), operands)
    return Kernel(matmul, operands)


def _stacked_matmul(call: Call, transpose_x: bool, transpose_y: bool) -> Kernel | None:
    """A large streamed stack of matrices as x, such as a layer's experts: some matrices at a time. None for others."""
    (x, y), matmul = (call.operand("x"), call.operand("y")), call.arithmetic.matmul
    blocks = _row_blocks(call, x) if 2 < len(x.shape) >= len(y.shape) else None
    if blocks is None:
        return None
    is_stacked = len(y.shape) == len(x.shape) and y.shape[0] != 1

    def run(y: Tensor) -> Tensor:
        y = y.mT if transpose_y else y
        parts: list[Tensor] = []
        done = 0
        for block in blocks():
            matrices = block.reshape(-1, *x.shape[1:])
            count = matrices.shape[0]
            matrices = matrices.mT if transpose_x else matrices
            parts.append(matmul(matrices, y[done : done + count] if is_stacked else y))
            done += count
        return torch.cat(parts)

    return Kernel(run, [y])


def _linear_flops(node: Node, sizes: Sizes) -> int:
    inner = sizes.operand(node, "weight").shape[1]
    return (2 * inner + bool(node.operands.get("bias"))) * elements(sizes.result(node))


@operation("linear", flops=_linear_flops)
def prepare_linear(call: Call) -> Kernel:
    arithmetic = call.arithmetic
    x, weight = call.operand("x"), call.operand("weight")
    bias = [call.operand("bias")] if call.has("bias") else []

    def multiply(x: Tensor, weight: Tensor) -> Tensor:
        return arithmetic.in_blocks(
            x.shape[-1], lambda first, last: functional.linear(x[..., first:last], weight[:, first:last])
        )

    blocks = _row_blocks(call, weight)
    if blocks is not None:

        def run_streamed(x: Tensor, bias: Tensor | None = None) -> Tensor:
            total = torch.cat([multiply(x, block) for block in blocks()], -1)
            return total if bias is None else total + bias

        return Kernel(run_streamed, [x, *bias])
    if not isinstance(arithmetic, Float16Arithmetic):
        return Kernel(functional.linear, [x, weight, *bias])

    def run(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        total = multiply(x, weight)
        return total if bias is None else total + bias

    return Kernel(run, [x, weight, *bias])


LARGEST_PADDING = 1 << 16


def _conv_flops(node: Node, sizes: Sizes) -> int:
    inner = math.prod(sizes.operand(node, "weight").shape[1:])  # of one group
    return (2 * inner + bool(node.operands.get("bias"))) * elements(sizes.result(node))


@operation("conv", flops=_conv_flops)
def prepare_conv(call: Call) -> Kernel:
    weight = call.operand("weight")
    kernel = weight.shape[2:]
    dimensions = len(kernel)
    strides = call.integers("strides") or [1] * dimensions
    dilations = call.integers("dilations") or [1] * dimensions
    groups = call.integer("groups", 1)
    padding = _padding(call, kernel, strides, dilations)
    bias = [call.operand("bias")] if call.has("bias") else []
    if groups == 1 and all(size == 1 for size in (*kernel, *strides)) and not any(padding):
        return _pointwise_conv(call, weight, bias)
    convolve, arithmetic = CONVOLUTIONS[dimensions], call.arithmetic

    def run(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if any(padding):
            if sum(map(abs, padding)) > LARGEST_PADDING:
                call.fail(f"pads by {padding}")
            x = functional.pad(x, padding)
        batch, channels = x.shape[0], x.shape[1] // groups
        grouped = x.reshape(batch, groups, channels, *x.shape[2:])  # (B, groups, C/groups, ...)

        def partial(first: int, last: int) -> Tensor:
            part = grouped[:, :, first:last].reshape(batch, groups * (last - first), *x.shape[2:])
            return convolve(part, weight[:, first:last], None, strides, 0, dilations, groups)

        total = arithmetic.in_blocks(channels, partial)
        return total if bias is None else total + bias.view(-1, *[1] * dimensions)

    return Kernel(run, [call.operand("x"), weight, *bias])


def _padding(call: Call, kernel: Sequence[int], strides: list[int], dilations: list[int]) -> list[int]:
    """Padding in torch's order: last axis first, before and after."""
    kind = call.text("pad_type", "valid")
    pairs = [(0, 0)] * len(kernel)
    if kind == "custom":
        given = call.integers("pad") or [0] * 2 * len(kernel)
        pairs = list(zip(given[::2], given[1::2], strict=True))
    elif kind in ("same", "same_lower"):
        pairs = []
        for size, width, stride, dilation in zip(call.shape("x")[2:], kernel, strides, dilations, strict=True):
            if size < 0:
                call.fail(f"pad_type {kind} needs a shape that is known beforehand")
            total = max((-(-size // stride) - 1) * stride + (width - 1) * dilation + 1 - size, 0)
            smaller, larger = total // 2, total - total // 2
            pairs.append((smaller, larger) if kind == "same" else (larger, smaller))
    elif kind != "valid":
        call.fail(f"pad_type {kind} cannot be evaluated")
    return [size for pair in reversed(pairs) for size in pair]


def _pointwise_conv(call: Call, weight: Operand, bias: list[Operand]) -> Kernel:
    """A convolution of width 1 is a matrix product; one column, the decode step, is a matrix times a vector."""
    outputs, channels = weight.shape[:2]
    shape, result = call.shape("x"), call.result_shape
    operands = [call.operand("x"), Operand(weight.source, (outputs, channels)), *bias]
    blocks = _row_blocks(call, weight)
    is_vector = all(size == 1 for size in (shape[0], *shape[2:]))
    if is_vector and not bias and _is_kept(call, weight):
        times_vector = call.arithmetic.times_vector
        matrix = Operand(weight.source, (outputs, channels), call.arithmetic.kept)
        return Kernel(lambda x, matrix: times_vector(matrix, x.reshape(channels)).view(result), [operands[0], matrix])
    if blocks is None and not isinstance(weight.source, str) and not isinstance(call.arithmetic, Float16Arithmetic):
        if is_vector and bias:
            return Kernel(lambda x, weight, bias: torch.addmv(bias, weight, x.reshape(channels)).view(result), operands)
        if is_vector:
            return Kernel(lambda x, weight: torch.mv(weight, x.reshape(channels)).view(result), operands)
        if shape[0] == 1 and not bias and -1 not in result:
            return Kernel(lambda x, weight: torch.mm(weight, x.reshape(channels, -1)).view(result), operands)
    arithmetic = call.arithmetic

    def multiply(x: Tensor, matrix: Tensor) -> Tensor:
        columns = x.flatten(2)  # (B, C, S)
        return arithmetic.in_blocks(
            channels, lambda first, last: torch.matmul(matrix[:, first:last], columns[:, first:last])
        )

    def finish(x: Tensor, total: Tensor, bias: Tensor | None) -> Tensor:
        total = total if bias is None else total + bias[:, None]
        return total.reshape(x.shape[0], outputs, *x.shape[2:])  # (B, O, ...)

    if blocks is not None:
        return Kernel(
            lambda x, bias=None: finish(x, torch.cat([multiply(x, block) for block in blocks()], 1), bias),
            [call.operand("x"), *bias],
        )
    return Kernel(
        lambda x, weight, bias=None: finish(x, multiply(x, weight.reshape(outputs, channels)), bias), operands
    )


def _is_kept(call: Call, weight: Operand) -> bool:
    """Whether a weight can stay in memory as the arithmetic wants it for a vector."""
    source = weight.source
    if isinstance(source, str) or (call.streams and source.is_large):
        return False
    return call.arithmetic.kept == "carried" or source.element_type == "float16"


def _einsum_flops(node: Node, sizes: Sizes) -> int:
    """(B, C, H, W) and (B, W, H, U) to (B, C, H, U)."""
    return 2 * sizes.type_of(node, node.operands["values"][0]).shape[-1] * elements(sizes.result(node))


@operation("einsum", flops=_einsum_flops)
def prepare_einsum(call: Call) -> Kernel:
    """(B, C, H, W) and (B, W, H, U) to (B, C, H, U), the only equation that MIL has; B may be missing."""
    equation, arithmetic = call.text("equation", "nchw,nwhu->nchu"), call.arithmetic

    def run(x: Tensor, y: Tensor) -> Tensor:
        return arithmetic.in_blocks(
            x.shape[-1],
            lambda first, last: torch.einsum(equation, x[..., first:last], y.narrow(-3, first, last - first)),
        )

    return Kernel(run, call.operand_list("values"))


def _attention_flops(node: Node, sizes: Sizes) -> int:
    """q (..., L, D), k (..., K, D), v (..., K, E): scores, their scale, mask and softmax, and what they mix."""
    keys, width = sizes.operand(node, "key").shape[-2:]
    scores = elements(sizes.operand(node, "query")) // width * keys
    each = 2 * width + 1 + bool(node.operands.get("attn_mask")) + SOFTMAX
    return each * scores + 2 * keys * elements(sizes.result(node))


@operation("scaled_dot_product_attention", flops=_attention_flops)
def prepare_attention(call: Call) -> Kernel:
    arithmetic = call.arithmetic
    operands = [call.operand(name) for name in ("query", "key", "value")]
    if call.has("attn_mask"):
        operands.append(call.operand("attn_mask"))
    if not isinstance(arithmetic, Float16Arithmetic):
        return Kernel(functional.scaled_dot_product_attention, operands)
    return Kernel(attend(arithmetic), operands)


def attend(arithmetic: Arithmetic) -> Callable[..., Tensor]:
    """Attention in its steps, by the sums and products of `arithmetic`."""

    def run(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        scores = arithmetic.round(arithmetic.matmul(query, key.mT) / math.sqrt(query.shape[-1]))
        if mask is not None and mask.dtype == torch.bool:
            scores = torch.where(mask, scores, MASKED)
        elif mask is not None:
            scores = arithmetic.round(scores + mask)
        return arithmetic.matmul(arithmetic.softmax(scores, -1), value)

    return run
