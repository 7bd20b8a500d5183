"""For each rule that looks at a program: one that breaks it, and one that does not, as small as may be."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from coremltools.converters.mil.mil import Builder as mb
from coremltools.converters.mil.mil import types

from tests.evaluate.mil_programs import Specs

F16, F32, I32 = "float16", "float32", "int32"


@dataclass
class Case:
    """A function's body over its inputs and states; `patch` writes into the saved program what coremltools refuses."""

    build: Callable[..., Any]
    inputs: Specs
    states: Specs = field(default_factory=dict)
    level: str = "error"
    patch: Callable[[Any], None] = lambda model: None


def x16(*shape: int) -> Specs:
    return {"x": (F16, shape)}


def weights(*shape: int) -> Any:
    return np.linspace(-1, 1, int(np.prod(shape)), dtype=np.float16).reshape(shape)


def conv(x: Any, out: int, **more: Any) -> Any:
    return mb.conv(x=x, weight=weights(out, x.shape[1] // more.get("groups", 1), 1, 1), **more)


def add_axis(model: Any) -> None:
    (block,) = model.mlProgram.functions["main"].block_specializations.values()
    for operation in block.operations:
        if operation.type == "reshape":
            operation.outputs[0].type.tensorType.dimensions.add().constant.size = 1


def half(x: Any) -> Any:
    return mb.cast(x=x, dtype="fp16")


def full(x: Any) -> Any:
    return mb.cast(x=x, dtype="fp32")


def island(x: Any) -> Any:
    return half(mb.mul(x=full(x), y=np.float32(2)))


def front_island(x: Any, ids: Any) -> Any:
    return mb.mul(x=x, y=half(mb.cos(x=full(ids))))


def integers_inside(x: Any) -> Any:
    y = conv(x, 32)
    return mb.mul(x=y, y=half(mb.add(x=mb.cast(x=y, dtype="int32"), y=np.int32(1))))


def integers_before(x: Any, ids: Any) -> Any:
    return mb.mul(x=conv(x, 32), y=half(mb.add(x=ids, y=np.int32(1))))


def read_and_write(first: int, update: int = 1) -> Callable[..., Any]:
    def build(x: Any, cache: Any) -> Any:
        held = mb.read_state(input=cache)
        shape = list(held.shape)
        end = [*shape[:-2], first + update, shape[-1]]
        new = mb.slice_update(x=held, update=x, begin=[0] * (len(shape) - 2) + [first, 0], end=end)
        now = mb.coreml_update_state(state=cache, value=new)
        return mb.mul(x=now, y=np.float16(2))

    return build


def cache(*shapes: tuple[int, ...]) -> Specs:
    names = ["cache", "other", "third", "fourth"]
    return {name: (F16, shape) for name, shape in zip(names, shapes, strict=False)}


def sum_of_states(x: Any, **states: Any) -> Any:
    for state in states.values():
        held = mb.reduce_sum(x=mb.read_state(input=state), axes=[0, 1, 2], keep_dims=False)
        x = mb.add(x=x, y=held)
    return x


def written_value_is_output(x: Any, cache: Any) -> Any:
    new = mb.add(x=mb.read_state(input=cache), y=x)
    mb.coreml_update_state(state=cache, value=new)
    return new


def stale_write(x: Any, cache: Any) -> Any:
    held = mb.read_state(input=cache)
    for row in (0, 1):
        new = mb.slice_update(x=held, update=x, begin=[0, 0, row, 0], end=[1, 1, row + 1, 32])
        now = mb.coreml_update_state(state=cache, value=new)
    return mb.mul(x=now, y=np.float16(2))


def shifted(x: Any, cache: Any) -> Any:
    held = mb.read_state(input=cache)
    later = mb.slice_by_index(x=held, begin=[0, 0, 1, 0], end=list(held.shape))
    now = mb.coreml_update_state(state=cache, value=mb.concat(values=[later, x], axis=2))
    return mb.mul(x=now, y=np.float16(2))


def attend(repeat: bool) -> Callable[..., Any]:
    def build(x: Any, k: Any) -> Any:
        if repeat:
            k = mb.reshape(x=mb.tile(x=mb.expand_dims(x=k, axes=[2]), reps=[1, 1, 2, 1, 1]), shape=[1, 4, 8, 32])
        else:
            x = mb.reshape(x=x, shape=[1, 2, 2, 32])
        return mb.matmul(x=x, y=k, transpose_y=True)

    return build


def norm(divide: bool, eps: float = 1e-3) -> Callable[..., Any]:
    def build(x: Any) -> Any:
        if divide:
            largest = mb.reduce_max(x=mb.abs(x=x), axes=[1], keep_dims=True)
            x = mb.real_div(x=x, y=mb.maximum(x=largest, y=np.float16(1e-3)))
        mean = mb.reduce_mean(x=mb.mul(x=x, y=x), axes=[1], keep_dims=True)
        return mb.mul(x=x, y=mb.rsqrt(x=mb.add(x=mean, y=np.float16(eps)), epsilon=1e-12))

    return build


def masked(lowest: float, twice: bool = False) -> Callable[..., Any]:
    def build(x: Any, seen: Any) -> Any:
        for _ in range(1 + twice):
            x = mb.add(x=x, y=mb.select(cond=mb.cast(x=seen, dtype="bool"), a=np.float16(0), b=np.float16(lowest)))
        return mb.softmax(x=x, axis=-1)

    return build


def exponential(subtract: bool) -> Callable[..., Any]:
    def build(x: Any) -> Any:
        if subtract:
            x = mb.sub(x=x, y=mb.reduce_max(x=x, axes=[-1], keep_dims=True))
        return mb.exp(x=x)

    return build


def palette(bits: int = 4, entries: Any = np.float16, shape: tuple[int, int] = (64, 64)) -> Any:
    indices = (np.arange(shape[0] * shape[1]) % 2**bits).astype(
        types.nptype_from_builtin(types.string_to_builtin(f"uint{bits}"))
    )
    lut = np.arange(2**bits).astype(entries).reshape(1, 1, 2**bits, 1)
    return mb.constexpr_lut_to_dense(indices=indices.reshape(shape), lut=lut)


def scaled_palette(x: Any) -> Any:
    table = palette(entries=np.int8)
    weight = mb.constexpr_blockwise_shift_scale(data=table, scale=weights(64, 1))
    return mb.matmul(x=x, y=weight)


def palette_with_scales(x: Any) -> Any:
    return mb.matmul(x=x, y=mb.constexpr_blockwise_shift_scale(data=palette(), scale=weights(64, 1)))


def experts(x: Any) -> Any:
    """A scale for each row of each of three experts, and no blocks."""
    data = (np.arange(3 * 64 * 64) % 100).astype(np.int8).reshape(3, 64, 64)
    return mb.matmul(x=x, y=mb.constexpr_blockwise_shift_scale(data=data, scale=weights(3, 64, 1)))


def integers(scales: int) -> Callable[..., Any]:
    def build(x: Any) -> Any:
        data = (np.arange(64 * 64) % 100).astype(np.int8).reshape(64, 64)
        return mb.matmul(x=x, y=mb.constexpr_blockwise_shift_scale(data=data, scale=weights(64, scales)))

    return build


def palette_and_state(x: Any, cache: Any) -> Any:
    y = mb.matmul(x=x, y=palette())
    return mb.add(x=y, y=mb.reduce_sum(x=mb.read_state(input=cache), axes=[0, 1, 2], keep_dims=False))


def quantised(x: Any) -> Any:
    y = mb.quantize(input=x, scale=np.float16(0.1), output_dtype="int8")
    return mb.dequantize(input=y, scale=np.float16(0.1))


def long_chain(count: int) -> Callable[..., Any]:
    def build(x: Any) -> Any:
        for _ in range(count):
            x = mb.relu(x=x)
        return x

    return build


def hops(count: int) -> Callable[..., Any]:
    def build(x: Any) -> Any:
        for _ in range(count):
            x = mb.mul(x=conv(x, 32), y=half(mb.mod(x=mb.relu(x=x), y=np.float16(3))))
        return x

    return build


def one(function: Callable[..., Any], **more: Any) -> Callable[..., Any]:
    return lambda x: function(x=x, **more)


def quotient_by_another(x: Any, w: Any) -> Any:
    largest = mb.reduce_max(x=mb.abs(x=w), axes=[1], keep_dims=True)
    return mb.square(x=mb.real_div(x=x, y=largest))


IDS: Specs = {"ids": (I32, (1, 32))}
IMAGE = x16(1, 32, 1, 32)

# by rule: what breaks it, what does not
CASES: dict[str, tuple[Case, Case]] = {
    "rank-5": (
        Case(one(mb.reshape, shape=[1, 2, 2, 4, 32]), x16(16, 32), patch=add_axis),
        Case(one(mb.reshape, shape=[2, 2, 4, 32]), x16(16, 32)),
    ),
    "f32-mid": (Case(island, x16(1, 32)), Case(front_island, {**x16(1, 32), **IDS})),
    "int-mid": (
        Case(integers_inside, IMAGE, level="warning"),
        Case(integers_before, {**IMAGE, **IDS}),
    ),
    "width-16k": (
        Case(mb_relu := one(mb.relu), x16(1, 65600)),
        Case(mb_relu, x16(1, 16384)),
    ),
    "chan-64k": (Case(mb_relu, x16(1, 65568, 1, 1), level="warning"), Case(mb_relu, x16(1, 65536, 1, 1))),
    "transpose-ext": (
        Case(one(mb.transpose, perm=[1, 0]), x16(16416, 32), level="warning"),
        Case(one(mb.transpose, perm=[1, 0]), x16(16384, 32)),
    ),
    "last-1": (Case(mb_relu, x16(1, 9, 2048, 3), level="warning"), Case(mb_relu, x16(1, 9, 64, 3))),
    "wset": (Case(mb_relu, x16(1, 1100, 32, 32), level="warning"), Case(mb_relu, x16(1, 1000, 32, 32))),
    "io-64B": (Case(mb_relu, x16(1, 33), level="warning"), Case(mb_relu, x16(1, 64))),
    "slice-w4094": (
        Case(one(mb.slice_by_index, begin=[0, 32], end=[1, 64]), x16(1, 64), level="unknown"),
        Case(lambda x: mb.slice_by_index(x=mb.softmax(x=x, axis=-1), begin=[0, 32], end=[1, 64]), x16(1, 64)),
    ),
    "mac-32768": (Case(lambda x: conv(x, 32), IMAGE, level="unknown"), Case(mb_relu, IMAGE)),
    "div-sub": (
        Case(lambda x: mb.real_div(x=x, y=mb.add(x=x, y=np.float16(1))), x16(1, 32), level="unknown"),
        Case(lambda x: mb.real_div(x=x, y=mb.clip(x=x, alpha=np.float16(1), beta=np.float16(9))), x16(1, 32)),
    ),
    "rsqrt-0": (Case(norm(False, 1e-6), IMAGE, level="warning"), Case(norm(True, 1e-6), IMAGE)),
    "exp-raw": (Case(exponential(False), x16(1, 32), level="warning"), Case(exponential(True), x16(1, 32))),
    "square-256": (Case(norm(False), IMAGE, level="unknown"), Case(norm(True), IMAGE)),
    "softplus": (Case(one(mb.softplus), IMAGE, level="warning"), Case(mb_relu, IMAGE)),
    "nan-logic": (
        Case(lambda x: half(mb.not_equal(x=x, y=x)), x16(1, 32)),
        Case(lambda x: half(mb.not_equal(x=x, y=np.float16(0))), x16(1, 32)),
    ),
    "mask-inf": (
        Case(masked(-np.inf, twice=True), {**x16(1, 32), "seen": (I32, (1, 32))}),
        Case(masked(-1e4, twice=True), {**x16(1, 32), "seen": (I32, (1, 32))}),
    ),
    "act-lut": (Case(one(mb.silu), x16(1, 32), level="note"), Case(mb_relu, x16(1, 32))),
    "trig": (
        Case(one(mb.sin), x16(1, 32), level="warning"),
        Case(lambda x, ids: mb.mul(x=conv(x, 32), y=half(mb.sin(x=full(ids)))), {**IMAGE, **IDS}),
    ),
    "gather-dyn": (
        Case(lambda x, ids: mb.gather(x=x, indices=ids, axis=1), {**x16(1, 64), **IDS}),
        Case(lambda x: mb.gather(x=x, indices=np.array([3, 1]), axis=1), x16(1, 64)),
    ),
    "gather-i32": (
        Case(lambda ids: mb.gather(x=weights(64, 32), indices=ids), IDS, level="warning"),
        Case(lambda ids: mb.gather(x=weights(64, 32), indices=mb.cast(x=ids, dtype="uint16")), IDS),
    ),
    "gather-nd": (
        Case(lambda x, ids: mb.gather_nd(x=x, indices=ids), {**x16(64, 32), "ids": (I32, (4, 1))}),
        Case(lambda x: mb.gather_nd(x=x, indices=np.array([[1], [2]], np.int32)), x16(64, 32)),
    ),
    "embed-in": (
        Case(lambda ids: mb.gather(x=weights(64, 32), indices=ids), IDS, level="note"),
        Case(lambda x, ids: mb.add(x=x, y=half(ids)), {**x16(1, 32), **IDS}),
    ),
    "no-path": (
        Case(lambda x: mb.mod(x=x, y=np.float16(3)), x16(1, 32)),
        Case(lambda x: mb.floor(x=x), x16(1, 32)),
    ),
    "argmax-2048": (
        Case(one(mb.reduce_argmax, axis=1), x16(1, 2049), level="warning"),
        Case(one(mb.reduce_argmax, axis=1), x16(1, 2048)),
    ),
    "repeat-kv": (
        Case(attend(True), {**x16(1, 4, 1, 32), "k": (F16, (1, 2, 8, 32))}, level="warning"),
        Case(attend(False), {**x16(1, 4, 1, 32), "k": (F16, (1, 2, 8, 32))}),
    ),
    "linear-conv": (
        Case(lambda x: mb.linear(x=x, weight=weights(64, 32)), x16(1, 32), level="note"),
        Case(lambda x: conv(x, 64), IMAGE),
    ),
    "conv-8x8": (
        Case(lambda x: mb.silu(x=conv(x, 64)), x16(1, 32, 1, 64), level="note"),
        Case(lambda x: mb.silu(x=conv(x, 64)), x16(1, 32, 8, 8)),
    ),
    "dw-conv": (
        Case(lambda x: conv(x, 32, groups=32), IMAGE, level="warning"),
        Case(lambda x: conv(x, 32, groups=2), IMAGE),
    ),
    "group-conv": (
        Case(lambda x: conv(x, 32, groups=8), IMAGE, level="note"),
        Case(lambda x: conv(x, 32, groups=4), IMAGE),
    ),
    "dyn-weight": (
        Case(lambda x, w: mb.conv(x=x, weight=w), {**IMAGE, "w": (F16, (32, 32, 1, 1))}, level="warning"),
        Case(lambda x: conv(x, 32), IMAGE),
    ),
    "state-count": (
        Case(sum_of_states, x16(32), cache((1, 1, 32, 32), (1, 1, 32, 32), (1, 1, 32, 32))),
        Case(sum_of_states, x16(32), cache((1, 1, 32, 32))),
    ),
    "state-uniform": (
        Case(sum_of_states, x16(32), cache((1, 1, 32, 32), (1, 1, 64, 32)), level="warning"),
        Case(sum_of_states, x16(32), cache((1, 1, 32, 32), (1, 1, 32, 32))),
    ),
    "state-32": (
        Case(sum_of_states, x16(32), cache((1, 1, 36, 32)), level="warning"),
        Case(sum_of_states, x16(32), cache((1, 1, 64, 32))),
    ),
    "state-inplace": (
        Case(written_value_is_output, x16(1, 1, 32, 32), cache((1, 1, 32, 32))),
        Case(read_and_write(3), x16(1, 1, 1, 32), cache((1, 1, 32, 32))),
    ),
    "state-rows": (
        Case(read_and_write(0, 96), x16(1, 1, 96, 32), cache((1, 1, 128, 32)), level="warning"),
        Case(read_and_write(0, 64), x16(1, 1, 64, 32), cache((1, 1, 128, 32))),
    ),
    "state-shift": (
        Case(shifted, x16(1, 1, 1, 32), cache((1, 1, 32, 32)), level="warning"),
        Case(read_and_write(3), x16(1, 1, 1, 32), cache((1, 1, 32, 32))),
    ),
    "state-cost": (
        Case(sum_of_states, x16(32), cache((1, 1, 2048, 32)), level="note"),
        Case(sum_of_states, x16(32), cache((1, 1, 1024, 32))),
    ),
    "pkg-ops": (Case(long_chain(2001), x16(1, 32), level="note"), Case(long_chain(20), x16(1, 32))),
    "pq-block": (
        Case(integers(2), x16(1, 64), level="warning"),
        Case(integers(1), x16(1, 64)),
    ),
    "pq-int8": (
        Case(integers(1), x16(1, 64), level="note"),
        Case(lambda x: mb.matmul(x=x, y=palette()), x16(1, 64)),
    ),
    "pq-lut": (
        Case(scaled_palette, x16(1, 64)),
        Case(integers(1), x16(1, 64)),
    ),
    "pq-scale": (Case(palette_with_scales, x16(1, 64)), Case(lambda x: mb.matmul(x=x, y=palette()), x16(1, 64))),
    "pq-gpu": (
        Case(lambda x: mb.matmul(x=x, y=palette()), x16(1, 64), level="note"),
        Case(integers(1), x16(1, 64)),
    ),
    "pq-crash": (
        Case(palette_and_state, x16(1, 64), cache((1, 1, 32, 64)), level="warning"),
        Case(lambda x: mb.matmul(x=x, y=palette()), x16(1, 64)),
    ),
    "a8": (Case(quantised, x16(1, 64), level="warning"), Case(mb_relu, x16(1, 64))),
    "small-cpu": (
        Case(lambda x: conv(x, 64), IMAGE, level="note"),
        Case(lambda x: mb.matmul(x=x, y=np.zeros((2240, 2240), np.float16)), x16(1, 2240)),
    ),
    "crossing": (Case(hops(2), IMAGE, level="warning"), Case(hops(1), IMAGE)),
    "sdpa-op": (
        Case(lambda x: mb.scaled_dot_product_attention(query=x, key=x, value=x), x16(1, 2, 8, 32), level="warning"),
        Case(lambda x: mb.matmul(x=x, y=x, transpose_y=True), x16(1, 2, 8, 32)),
    ),
}  # fmt: skip

# Other ways to break a rule: by a name, its id, the device, and what is found.
OTHERS: dict[str, tuple[str, str | None, str | None, Case]] = {
    "a state written from what is stale": ("state-inplace", None, "error",
        Case(stale_write, x16(1, 1, 1, 32), cache((1, 1, 32, 32)))),
    "two states": ("state-count", None, "warning",
        Case(sum_of_states, x16(32), cache((1, 1, 32, 32), (1, 1, 32, 32)))),
    "three states of one shape": ("state-uniform", "M1", None,
        Case(sum_of_states, x16(32), cache(*[(1, 1, 32, 32)] * 3))),
    "states of two shapes on M1": ("state-uniform", "M1", "error",
        Case(sum_of_states, x16(32), cache((1, 1, 32, 32), (1, 1, 64, 32)))),
    "a head of 40 on M4": ("state-32", "M4", "error", Case(sum_of_states, x16(40), cache((1, 1, 32, 40)))),
    "a head of 40 on M1": ("state-32", "M1", None, Case(sum_of_states, x16(40), cache((1, 1, 32, 40)))),
    "36 rows on M4": ("state-32", "M4", "warning", Case(sum_of_states, x16(32), cache((1, 1, 36, 32)))),
    "blocks on M1": ("pq-block", "M1", "error", Case(integers(2), x16(1, 64))),
    "blocks on M3": ("pq-block", "M3", "warning", Case(integers(2), x16(1, 64))),
    "experts with a scale for each row": ("pq-block", "M1", None, Case(experts, x16(3, 1, 64))),
    "experts of int8": ("pq-int8", "M1", "note", Case(experts, x16(3, 1, 64))),
    "a palette of float16": ("pq-lut", None, "note", Case(lambda x: mb.matmul(x=x, y=palette()), x16(1, 64))),
    "one mask of -inf": ("mask-inf", None, "warning", Case(masked(-np.inf), {**x16(1, 32), "seen": (I32, (1, 32))})),
    "a working set between M1's and M5's": ("wset", "M5", None, Case(mb_relu, x16(1, 1100, 32, 32))),
    "a working set beyond M5's": ("wset", "M5", "warning", Case(mb_relu, x16(1, 2400, 32, 32))),
    "a working set of nobody's": ("wset", "A19", None, Case(mb_relu, x16(1, 2400, 32, 32))),
    "an axis beyond 65,536 on M4": ("width-16k", "M4", "error", Case(mb_relu, x16(1, 65600))),
    "an axis of 20,000 on M4": ("width-16k", "M4", None, Case(mb_relu, x16(1, 20000))),
    "five axes": ("rank-5", None, "note", Case(one(mb.reshape, shape=[1, 2, 2, 4, 32]), x16(16, 32))),
    "quantised activations on a phone": ("a8", "A19", "error", Case(quantised, x16(1, 64))),
    "a computed weight on M1": ("dyn-weight", "M1", "error",
        Case(lambda x, w: mb.conv(x=x, weight=w), {**IMAGE, "w": (F16, (32, 32, 1, 1))})),
    "a square of what a softmax gives": ("square-256", None, None,
        Case(lambda x: mb.square(x=mb.softmax(x=x, axis=-1)), x16(1, 32))),
    "a square by pow": ("square-256", None, "unknown", Case(lambda x: mb.pow(x=x, y=np.float16(2)), x16(1, 32))),
    "an exponential of what is clipped": ("exp-raw", None, None,
        Case(lambda x: mb.exp(x=mb.clip(x=x, alpha=np.float16(-1), beta=np.float16(9))), x16(1, 32))),
    "a quotient by the maximum of another": (
        "square-256", None, "unknown", Case(quotient_by_another, {**x16(1, 32), "w": (F16, (1, 32))})),
}  # fmt: skip
