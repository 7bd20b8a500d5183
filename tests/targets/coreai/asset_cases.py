"""For each rule that sees an .aimodel's operations: a function that breaks it, and one that does not."""

from collections.abc import Callable

from tests.targets.coreai.asset_texts import Body, Case

X = {"x": "1x32xf16"}
IMAGE = {"x": "1x32x1x8xf16"}
IDS = {"ids": "1x1x1x8xsi32"}
Build = Callable[..., str]


def one(operation: str, kind: str, *numbers: tuple[str, str]) -> Build:
    """An operation of x, and of constants."""
    return lambda b, x: b.make(operation, kind, x, *(b.numbers(*each) for each in numbers))


def relu(b: Body, x: str) -> str:
    return b.make("relu", b.kinds[x], x)


def conv(b: Body, x: str, out: int = 32, groups: int = 1, weight: str = "") -> str:
    _, channels, *sizes, _ = b.kinds[x].split("x")
    rest = "x".join(sizes)
    taken = weight or b.weight(f"{out}x{int(channels) // groups}x1x1xf16")
    ones = b.numbers("1", "2xui32")
    return b.make("conv2d", f"1x{out}x{rest}xf16", x, taken, ones, ones, b.numbers(str(groups), "ui32"))


def cast(b: Body, x: str, dtype: str) -> str:
    return b.make("cast", "x".join([*b.kinds[x].split("x")[:-1], dtype]), x)


def island(b: Body, x: str) -> str:
    full = cast(b, x, "f32")
    return cast(b, b.wide("mul", b.kinds[full], full, b.numbers("2.0", "f32")), "f16")


def angles(b: Body, x: str, ids: str) -> str:
    """Made before the layers, in float32."""
    angle = b.make("cos", "1x1x1x8xf32", cast(b, ids, "f32"))
    return b.wide("mul", "1x32x1x8xf16", conv(b, x), cast(b, angle, "f16"))


def integers_inside(b: Body, x: str) -> str:
    y = conv(b, x)
    more = b.wide("add", "1x32x1x8xsi32", cast(b, y, "si32"), b.numbers("1", "si32"))
    return b.wide("mul", b.kinds[y], y, cast(b, more, "f16"))


def integers_before(b: Body, x: str, ids: str) -> str:
    more = b.wide("add", "1x1x1x8xsi32", ids, b.numbers("1", "si32"))
    return b.wide("mul", "1x32x1x8xf16", conv(b, x), cast(b, more, "f16"))


def cut(first: str) -> Build:
    """x[:, first:]"""

    def build(b: Body, x: str) -> str:
        kind = f"1x{64 - int(first)}xf16"
        bounds = (f"[0, {first}]", "2147483647", "1")
        return b.make("slice", kind, x, *(b.numbers(numbers, "2xsi32") for numbers in bounds))

    return build


def row_of(length: str) -> Build:
    """Rows of x from a place on that a call says, to another; and something of them."""

    def build(b: Body, x: str, at: str, other: str) -> str:
        end = b.wide("add", "1xsi32", other if length == "another" else at, b.numbers("4", "1xsi32"))
        axis, zero, width = b.numbers("0", "si32"), b.numbers("0", "1xsi32"), b.numbers("32", "1xsi32")
        begin = b.make("concat", "2xsi32", axis, at, zero)
        rows = b.make(
            "slice", "?x?xf16", x, begin, b.make("concat", "2xsi32", axis, end, width), b.numbers("1", "2xsi32")
        )
        turned = b.make("transpose", "?x?xf16", rows, b.numbers("[1, 0]", "2xui32"))
        return b.wide("add", "?x?xf16", turned, turned)

    return build


def norm(is_safe: bool, eps: str = "0.001") -> Build:
    """Without its weight, over the channels; divided by the largest magnitude first where it is safe."""

    def build(b: Body, x: str) -> str:
        axes, small = b.numbers("1", "1xsi32"), "1x1x1x8xf16"
        if is_safe:
            top = b.make("reduce_max", small, b.make("abs", b.kinds[x], x), axes)
            x = b.wide("divide", b.kinds[x], x, b.wide("maximum", small, top, b.numbers("6.2e-5", "f16")))
        mean = b.make("reduce_mean", small, b.wide("mul", b.kinds[x], x, x), axes)
        return b.wide("mul", b.kinds[x], x, b.make("rsqrt", small, b.wide("add", small, mean, b.numbers(eps, "f16"))))

    return build


def exponential(is_safe: bool) -> Build:
    def build(b: Body, x: str) -> str:
        if is_safe:
            x = b.wide("sub", "1x32xf16", x, b.make("reduce_max", "1x1xf16", x, b.numbers("1", "1xsi32")))
        return b.make("exp", "1x32xf16", x)

    return build


def compared(with_itself: bool) -> Build:
    def build(b: Body, x: str) -> str:
        other = x if with_itself else b.numbers("0.0", "f16")
        return cast(b, b.wide("not_equal", "1x32xi1", x, other), "f16")

    return build


def masked(lowest: str) -> Build:
    """Two masks added: one in a blob, one of what is seen."""

    def build(b: Body, x: str, seen: str) -> str:
        hidden = b.wide("mul", "1x32xf16", cast(b, seen, "f16"), b.numbers(lowest, "f16"))
        mask = b.weight("1x32xf16", bytes.fromhex({"0xFC00": "00fc", "-1.0e4": "e2f0"}[lowest]) * 32)
        return b.wide("add", "1x32xf16", x, b.wide("add", "1x32xf16", mask, hidden))

    return build


def rows_picked(indices: str, depth: int) -> Build:
    """Of x, by indices that the call gives or that are constant."""

    def build(b: Body, x: str, ids: str) -> str:
        places = ids if indices == "given" else b.numbers("1", f"4x{depth}xsi32")
        return b.make("gather_nd", "4x32xf16" if depth == 1 else "4xf16", x, places)

    return build


def along(b: Body, x: str, ids: str) -> str:
    return b.make("gather_along_axis", "4x32xf16", x, ids, b.numbers("0", "si32"))


def table(b: Body, ids: str) -> str:
    return b.make("gather_nd", "4x32xf16", b.weight("64x32xf16"), ids)


def experts(b: Body, ids: str) -> str:
    return b.make("gather_nd", "4x8x32xf16", b.weight("64x8x32xf16"), ids)


def attend(is_repeated: bool) -> Build:
    def build(b: Body, x: str, keys: str) -> str:
        if is_repeated:
            keys = b.make("broadcast_to", "1x4x8x32xf16", keys, b.numbers("[1, 4, 8, 32]", "4xui32"))
        turned = b.make("transpose", f"1x{4 if is_repeated else 1}x32x8xf16", keys, b.numbers("[0, 1, 3, 2]", "4xui32"))
        return b.wide("batch_matmul", "1x4x1x8xf16", x, turned)

    return build


def multiplied(b: Body, x: str) -> str:
    return b.wide("batch_matmul", "1x64xf16", x, b.weight("32x64xf16"))


def of_a_state(b: Body, x: str, cache: str) -> str:
    rows = b.make("reduce_sum", "1x1x1x32xf16", b.read(cache), b.numbers("2", "1xsi32"))
    return b.wide("add", "1x1x1x32xf16", x, rows)


def by(b: Body, x: str, weight: str) -> str:
    turned = b.make("transpose", "32x64xf16", weight, b.numbers("[1, 0]", "2xui32"))
    return b.wide("batch_matmul", "1x64xf16", x, turned)


def integers(scales: str) -> Build:
    """int8 in as many blocks as there are scales in a row."""

    def build(b: Body, x: str) -> str:
        data, scale = b.weight("64x32xsi8"), b.weight(f"64x{scales}xf16")
        zero, none = b.numbers("0", f"64x{scales}xsi8"), b.numbers("0.0", f"64x{scales}xf16")
        made = b.make("blockwise_shift_scale", "64x32xf16", data, scale, zero, none)
        return by(b, x, made)

    return build


def palette(entries: str) -> Build:
    def build(b: Body, x: str) -> str:
        indices = b.weight("64x32xui4")
        lut, axis = b.weight(f"1x1x16x1x{entries}"), b.numbers("0", "si16")
        made = b.make("lut_to_dense", f"64x32x{entries}", indices, lut, axis)
        made = made if entries == "f16" else cast(b, made, "f16")
        return by(b, x, made)

    return build


def hops(count: int) -> Build:
    """From the engine to the CPU and back, so many times."""

    def build(b: Body, x: str) -> str:
        for _ in range(count):
            x = conv(b, b.wide("modulo", b.kinds[x], conv(b, x), b.numbers("3.0", "f16")))
        return x

    return build


PICK = {"x": "64x32xf16", "ids": "4x1xsi32"}
# by rule: what breaks it, what does not
CASES: dict[str, tuple[Case, Case]] = {
    "rank-5": (
        Case(one("reshape", "1x2x2x2x4x16xf16", ("[1, 2, 2, 2, 4, 16]", "6xui32")), {"x": "16x32xf16"}),
        Case(one("reshape", "2x2x4x32xf16", ("[2, 2, 4, 32]", "4xui32")), {"x": "16x32xf16"}),
    ),
    "dyn-shape": (
        Case(row_of("another"), {"x": "64x32xf16", "at": "1xsi32", "other": "1xsi32"}),
        Case(row_of("itself"), {"x": "64x32xf16", "at": "1xsi32", "other": "1xsi32"}),
    ),
    "f32-mid": (Case(island, X), Case(angles, {**IMAGE, **IDS})),
    "int-mid": (Case(integers_inside, IMAGE, level="warning"), Case(integers_before, {**IMAGE, **IDS})),
    "width-16k": (Case(relu, {"x": "1x65600xf16"}), Case(relu, {"x": "1x16384xf16"})),
    "chan-64k": (Case(relu, {"x": "1x65568x1x1xf16"}, level="warning"), Case(relu, {"x": "1x65536x1x1xf16"})),
    "transpose-ext": (
        Case(one("transpose", "32x16416xf16", ("[1, 0]", "2xui32")), {"x": "16416x32xf16"}, level="warning"),
        Case(one("transpose", "32x16384xf16", ("[1, 0]", "2xui32")), {"x": "16384x32xf16"}),
    ),
    "last-1": (Case(relu, {"x": "1x9x2048x3xf16"}, level="warning"), Case(relu, {"x": "1x9x64x3xf16"})),
    "wset": (Case(relu, {"x": "1x1100x32x32xf16"}, level="warning"), Case(relu, {"x": "1x1000x32x32xf16"})),
    "io-64B": (Case(relu, {"x": "1x33xf16"}, level="warning"), Case(relu, {"x": "1x64xf16"})),
    "slice-w4094": (Case(cut("32"), {"x": "1x64xf16"}, level="unknown"), Case(cut("0"), {"x": "1x64xf16"})),
    "mac-32768": (Case(conv, IMAGE, level="unknown"), Case(relu, IMAGE)),
    "div-sub": (
        Case(lambda b, x, z: b.wide("divide", "1x32xf16", x, z), {**X, "z": "1x32xf16"}, level="unknown"),
        Case(lambda b, x: b.wide("divide", "1x32xf16", x, b.numbers("9.0", "f16")), X),
    ),
    "rsqrt-0": (Case(norm(False, "1.0e-6"), IMAGE, level="warning"), Case(norm(True, "1.0e-6"), IMAGE)),
    "exp-raw": (Case(exponential(False), X, level="warning"), Case(exponential(True), X)),
    "square-256": (Case(norm(False), IMAGE, level="unknown"), Case(norm(True), IMAGE)),
    "nan-logic": (Case(compared(True), X), Case(compared(False), X)),
    "mask-inf": (
        Case(masked("0xFC00"), {**X, "seen": "1x32xsi32"}),
        Case(masked("-1.0e4"), {**X, "seen": "1x32xsi32"}),
    ),
    "act-lut": (Case(lambda b, x: b.make("silu", "1x32xf16", x), X, level="note"), Case(relu, X)),
    "trig": (Case(lambda b, x: b.make("sin", "1x32xf16", x), X, level="warning"), Case(angles, {**IMAGE, **IDS})),
    "gather-dyn": (Case(rows_picked("given", 1), PICK, level="warning"), Case(rows_picked("constant", 1), PICK)),
    "gather-nd": (
        Case(rows_picked("given", 2), {**PICK, "ids": "4x2xsi32"}, level="warning"),
        Case(rows_picked("constant", 2), {**PICK, "ids": "4x2xsi32"}),
    ),
    "embed-in": (Case(table, {"ids": "4x1xsi32"}, level="note"), Case(experts, {"ids": "4x1xsi32"})),
    "no-path": (
        Case(lambda b, x: b.wide("modulo", "1x32xf16", x, b.numbers("3.0", "f16")), X),
        Case(lambda b, x: b.make("round", "1x32xf16", x), X),
    ),
    "argmax-2048": (
        Case(one("argmax", "1x1xui32", ("1", "si32")), {"x": "1x2049xf16"}, level="warning"),
        Case(one("argmax", "1x1xui32", ("1", "si32")), {"x": "1x2048xf16"}),
    ),
    "repeat-kv": (
        Case(attend(True), {"x": "1x4x1x32xf16", "keys": "1x1x8x32xf16"}, level="warning"),
        Case(attend(False), {"x": "1x4x1x32xf16", "keys": "1x1x8x32xf16"}),
    ),
    "linear-conv": (Case(multiplied, X, level="note"), Case(conv, IMAGE)),
    "conv-8x8": (
        Case(lambda b, x: b.make("silu", b.kinds[x], conv(b, x)), {"x": "1x32x1x64xf16"}, level="note"),
        Case(lambda b, x: b.make("silu", b.kinds[x], conv(b, x)), {"x": "1x32x8x8xf16"}),
    ),
    "group-conv": (
        Case(lambda b, x: conv(b, x, groups=8), IMAGE, level="note"),
        Case(lambda b, x: conv(b, x, groups=4), IMAGE),
    ),
    "dyn-weight": (
        Case(lambda b, x, w: conv(b, x, weight=w), {**IMAGE, "w": "32x32x1x1xf16"}, level="warning"),
        Case(conv, IMAGE),
    ),
    "state-cost": (
        Case(of_a_state, {"x": "1x1x1x32xf16"}, {"cache": "1x1x2048x32xf16"}, level="note"),
        Case(of_a_state, {"x": "1x1x1x32xf16"}, {"other": "1x1x1024x32xf16"}),
    ),
    "pq-block": (Case(integers("2"), X, level="warning"), Case(integers("1"), X)),
    "pq-int8": (Case(integers("1"), X, level="note"), Case(palette("f16"), X)),
    "pq-lut": (Case(palette("si8"), X), Case(integers("1"), X)),
    "crossing": (Case(hops(2), IMAGE, level="warning"), Case(hops(1), IMAGE)),
}  # fmt: skip
