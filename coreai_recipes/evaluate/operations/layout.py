"""Operations that only arrange elements: shapes, order, joining and splitting."""

import torch
import torch.nn.functional as functional
from torch import Tensor

from coreai_recipes.evaluate.counting import nothing
from coreai_recipes.evaluate.opset import Call, Kernel, operation, unary


@operation("identity", moves=True, views=True, flops=nothing, reads="nothing")
def prepare_identity(call: Call) -> Kernel:
    return unary(call, lambda x: x)


@operation("reshape", moves=True, views=True, flops=nothing, reads="nothing")
def prepare_reshape(call: Call) -> Kernel:
    """A size of 0 takes over the operand's where the ranks are equal, -1 is what remains."""
    if -1 not in call.result_shape:
        shape = call.result_shape
        return unary(call, lambda x: x.reshape(shape))

    def run(x: Tensor, sizes: Tensor) -> Tensor:
        wanted = sizes.tolist()
        if 0 in wanted and len(wanted) != x.dim():
            call.fail(f"the shape {wanted} takes sizes over from {x.dim()} axes")
        return x.reshape([x.shape[axis] if size == 0 else size for axis, size in enumerate(wanted)])

    return Kernel(run, [call.operand("x"), call.operand("shape")])


@operation("reshape_like", moves=True, views=True, flops=nothing, reads="nothing")
def prepare_reshape_like(call: Call) -> Kernel:
    """Sizes of reference tensors `begins[i]:ends[i]`, one after the other."""
    if -1 in call.result_shape:
        call.fail("a shape that is only known at run time cannot be evaluated")
    shape = call.result_shape
    return unary(call, lambda x: x.reshape(shape))


@operation("flatten2d", moves=True, views=True, flops=nothing, reads="nothing")
def prepare_flatten2d(call: Call) -> Kernel:
    axis = call.integer("axis", 1) % len(call.shape("x"))
    return unary(call, lambda x: x.reshape(x.shape[:axis].numel(), x.shape[axis:].numel()))


@operation("transpose", moves=True, views=True, flops=nothing)
def prepare_transpose(call: Call) -> Kernel:
    order = call.axes("perm", len(call.shape("x")))
    swapped = [axis for axis, source in enumerate(order) if axis != source]
    if len(swapped) == 2:
        first, second = swapped
        return unary(call, lambda x: x.transpose(first, second))
    return unary(call, lambda x: x.permute(order))


@operation("expand_dims", moves=True, views=True, flops=nothing, reads="nothing")
def prepare_expand_dims(call: Call) -> Kernel:
    given = call.integers("axes") or []
    rank = len(call.shape("x")) + len(given)
    axes = sorted(axis % rank for axis in given)
    if len(axes) == 1:
        return unary(call, lambda x: x.unsqueeze(axes[0]))

    def run(x: Tensor) -> Tensor:
        for axis in axes:
            x = x.unsqueeze(axis)
        return x

    return unary(call, run)


@operation("squeeze", moves=True, views=True, flops=nothing, reads="nothing")
def prepare_squeeze(call: Call) -> Kernel:
    axes = call.integers("axes")
    return unary(call, (lambda x: x.squeeze()) if axes is None else (lambda x: x.squeeze(tuple(axes))))


@operation("concat", moves=True, flops=nothing)
def prepare_concat(call: Call) -> Kernel:
    axis, operands = call.integer("axis"), call.operand_list("values")
    if not call.flag("interleave"):
        if any(not operand.shape for operand in operands):
            return Kernel(
                lambda *values: torch.cat([value if value.dim() else value[None] for value in values], axis), operands
            )
        return Kernel(lambda *values: torch.cat(values, axis), operands)

    def interleave(*values: Tensor) -> Tensor:
        place = axis % values[0].dim()
        return torch.stack(values, place + 1).flatten(place, place + 1)

    return Kernel(interleave, operands)


@operation("stack", moves=True, flops=nothing)
def prepare_stack(call: Call) -> Kernel:
    axis = call.integer("axis")
    return Kernel(lambda *values: torch.stack(values, axis), call.operand_list("values"))


@operation("split", moves=True, views=True, flops=nothing)
def prepare_split(call: Call) -> Kernel:
    axis, sizes = call.integer("axis"), call.integers("split_sizes")
    if sizes is None:
        count = call.integer("num_splits")
        return unary(call, lambda x: torch.tensor_split(x, count, axis))
    return unary(call, lambda x: torch.split_with_sizes(x, sizes, axis))


@operation("tile", moves=True, flops=nothing)
def prepare_tile(call: Call) -> Kernel:
    repeats = call.integers("reps") if call.constant("reps") else None

    def repeat(x: Tensor, times: list[int]) -> Tensor:
        call.check_size([x.numel(), *times])
        return x.repeat(times)

    if repeats is not None:
        return unary(call, lambda x: repeat(x, repeats))
    return Kernel(lambda x, reps: repeat(x, reps.tolist()), [call.operand("x"), call.operand("reps")])


@operation("reverse", moves=True, flops=nothing)
def prepare_reverse(call: Call) -> Kernel:
    axes = call.axes("axes", len(call.shape("x")))
    return unary(call, lambda x: x.flip(axes))


@operation("pad", moves=True, flops=nothing)
def prepare_pad(call: Call) -> Kernel:
    mode, value = call.text("mode", "constant"), call.number("constant_val", 0.0)

    def pad(x: Tensor, sizes: list[int]) -> Tensor:
        # Sizes are before and after of the last axes in order; torch wants the last axis first.
        ordered = [size for place in reversed(range(0, len(sizes), 2)) for size in sizes[place : place + 2]]
        added = [sum(sizes[place : place + 2]) for place in range(0, len(sizes), 2)]
        first = x.dim() - len(added)
        call.check_size(size + (added[axis - first] if axis >= first else 0) for axis, size in enumerate(x.shape))
        if mode == "constant":
            return functional.pad(x, ordered, value=value)
        while len(ordered) > 2 and not any(ordered[-2:]):
            ordered = ordered[:-2]
        # Torch reflects and replicates only batches of channels of 1 to 3 axes.
        axes = len(ordered) // 2
        flat = x.reshape(1, -1, *x.shape[x.dim() - axes :])
        padded = functional.pad(flat, ordered, mode=mode)
        return padded.reshape(*x.shape[: x.dim() - axes], *padded.shape[2:])

    sizes = call.integers("pad") if call.constant("pad") else None
    if sizes is not None:
        return unary(call, lambda x: pad(x, sizes))
    return Kernel(lambda x, sizes: pad(x, sizes.tolist()), [call.operand("x"), call.operand("pad")])


@operation("depth_to_space", "pixel_shuffle", moves=True, flops=nothing)
def prepare_depth_to_space(call: Call) -> Kernel:
    """(B, r*r*C, H, W) to (B, C, r*H, r*W). The two differ in whether the r*r or the C channels vary faster."""
    shuffles = call.node.type == "pixel_shuffle"
    factor = call.integer("upscale_factor" if shuffles else "block_size")

    def run(x: Tensor) -> Tensor:
        if not shuffles:
            x = x.reshape(x.shape[0], factor * factor, -1, *x.shape[2:]).transpose(1, 2).flatten(1, 2)
        return functional.pixel_shuffle(x, factor)

    return unary(call, run)


@operation("space_to_depth", "pixel_unshuffle", moves=True, flops=nothing)
def prepare_space_to_depth(call: Call) -> Kernel:
    shuffles = call.node.type == "pixel_unshuffle"
    factor = call.integer("downscale_factor" if shuffles else "block_size")

    def run(x: Tensor) -> Tensor:
        x = functional.pixel_unshuffle(x, factor)
        if shuffles:
            return x
        return x.reshape(x.shape[0], -1, factor * factor, *x.shape[2:]).transpose(1, 2).flatten(1, 2)

    return unary(call, run)


@operation("sliding_windows", moves=True, views=True, flops=nothing)
def prepare_sliding_windows(call: Call) -> Kernel:
    """Windows of `size` along an axis become an axis of their own, behind it."""
    axis = call.integer("axis") % len(call.shape("x"))
    size, stride = call.integer("size"), call.integer("stride", 1)
    return unary(call, lambda x: x.unfold(axis, size, stride).movedim(-1, axis + 1))
