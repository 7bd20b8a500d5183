"""Bodies of small programs that break a rule of the engine, or that do not."""

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
