"""Predicates of compressed weights: palettes, integers for blocks and channels, quantised activations."""

from coreai_recipes.lint.predicates.predicate import Answer, Item, predicate, yes
from coreai_recipes.lint.program import Operation, Program

PALETTE = "constexpr_lut_to_dense"
INTEGERS = ("constexpr_blockwise_shift_scale", "constexpr_affine_dequantize")
SMALL = frozenset({"int8", "uint8"})


@predicate
def is_for_blocks(item: Item, wanted: bool) -> Answer:
    """Integers with a scale for each block of the input's axis, and not one for each row."""
    data, scale = item.op.operand("data"), item.op.operand("scale")
    if data is None or scale is None or "int" not in data.dtype or len(data.shape) != len(scale.shape):
        return None
    found = scale.shape[_axis_of_row(data.shape)] > 1
    return yes(found is wanted, data=data.shape, scales=scale.shape, bits=data.dtype)


@predicate
def is_int8_for_channels(item: Item, wanted: bool) -> Answer:
    if item.op.type == "constexpr_affine_dequantize":
        data = item.op.operand("quantized_data")
        return yes(data is not None and data.dtype in SMALL)
    data, scale = item.op.operand("data"), item.op.operand("scale")
    if data is None or scale is None or data.dtype not in SMALL:
        return None
    return yes(len(data.shape) == len(scale.shape) and scale.shape[_axis_of_row(data.shape)] == 1)


@predicate
def scales_a_palette(item: Item, wanted: bool) -> Answer:
    """Scales behind a palette's look-up: a weight that two operations make of constants."""
    data = item.op.operand("data", "quantized_data")
    if data is None or data.producer is None:
        return None
    return yes((data.producer.type == PALETTE) is wanted, data=data.shape)


@predicate
def table_of_integers(item: Item, wanted: bool) -> Answer:
    """A palette whose entries are themselves integers of 8 bits, scaled before or behind the look-up."""
    lut = item.op.operand("lut")
    if lut is None:
        return None
    scaled = lut.producer is not None and lut.producer.type in INTEGERS
    return yes((lut.dtype in SMALL or scaled) is wanted, entries=lut.shape)


@predicate
def is_meant_for_gpu(item: Item, wanted: bool) -> Answer:
    """Unless it is known to be meant for the engine alone."""
    return yes((item.context.subject.units in (None, "all", "cpu_and_gpu")) is wanted)


@predicate
def quantises_activations(item: Item, wanted: bool) -> Answer:
    x = item.op.operand("input", "x")
    return yes(x is not None and not x.constant)


@predicate
def palettes_with_states(item: Item, bits: list[int]) -> Answer:
    """Palettes of so many bits in a program that has states, written by coremltools 9."""
    program = item.program
    if program is None or not any(function.states for function in program.functions):
        return None
    if not _writer_of(item, program).startswith("9."):
        return None
    found = [operation for operation in _palettes(program) if bits_of(operation) in bits]
    return yes(bool(found), count=len(found), writer=_writer_of(item, program))


@predicate
def palettes_not_shared(item: Item, wanted: bool) -> Answer:
    """Palettes of one function that no other function takes from the same place."""
    program = item.program
    if program is None or len(program.functions) < 2:
        return None
    places = [
        {value.blob for operation in function.by_type.get(PALETTE, []) for value in operation.values() if value.blob}
        for function in program.functions
    ]
    held = [found for found in places if found]
    if len(held) < 2:
        return None
    largest = max(held, key=len)
    lone = [found for found in held if not found <= largest]
    return yes(bool(lone), functions=len(held))


def _axis_of_row(shape: tuple[int, ...]) -> int:
    """The axis along which a row's weights lie: the last but those of a convolution's 1 x 1."""
    return max((axis for axis, size in enumerate(shape) if size > 1), default=len(shape) - 1)


def bits_of(palette: Operation) -> int:
    """How many bits an index of a palette has."""
    lut, indices = palette.operand("lut"), palette.operand("indices")
    if indices is not None and indices.dtype.startswith("uint"):
        return int(indices.dtype.removeprefix("uint"))
    return max(0, (lut.count - 1).bit_length()) if lut is not None else 0


def _palettes(program: Program) -> list[Operation]:
    return [operation for function in program.functions for operation in function.by_type.get(PALETTE, [])]


def _writer_of(item: Item, program: Program) -> str:
    manifest = item.context.subject.manifest
    return program.writer or (str(manifest["versions"].get("coremltools", "")) if manifest else "")
