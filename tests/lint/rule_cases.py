"""For each rule that looks at a program: one that breaks it, and one that does not, as small as may be."""

import numpy as np
from coremltools.converters.mil.mil import Builder as mb

from tests.lint.rule_programs import (
    F16,
    I32,
    IDS,
    IMAGE,
    Case,
    add_axis,
    attend,
    cache,
    conv,
    experts,
    exponential,
    front_island,
    full,
    half,
    hops,
    integers,
    integers_before,
    integers_inside,
    island,
    long_chain,
    masked,
    norm,
    one,
    palette,
    palette_and_state,
    palette_with_scales,
    quantised,
    quotient_by_another,
    read_and_write,
    scaled_palette,
    shifted,
    stale_write,
    sum_of_states,
    weights,
    written_value_is_output,
    x16,
)

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
        Case(lambda ids: mb.gather(x=weights(8, 64, 32), indices=ids), IDS),  # experts
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
    "a wide product of one position": ("last-1", None, "note",
        Case(lambda x: mb.gelu(x=conv(x, 9728)), x16(1, 8, 1, 1))),
    "a product of one position that nothing keeps near": ("last-1", None, "warning",
        Case(lambda x: conv(x, 32800), x16(1, 8, 1, 1))),
    "what is added to a wide product": ("last-1", None, "warning",
        Case(lambda x, y: mb.add(x=conv(x, 9728), y=mb.relu(x=y)), {**x16(1, 8, 1, 1), "y": (F16, (1, 9728, 1, 1))})),
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
