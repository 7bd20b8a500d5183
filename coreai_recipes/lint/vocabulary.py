"""Core AI's operations under the names that rules know, which are those of Core ML's programs.

    before: %38 = coreai.decomposable.broadcasting_divide %arg0, %37
    after:  real_div, whose operands are x and y

Only what computes the same has the same name. Any other operation keeps its own, and its operands have none.
"""

from collections.abc import Sequence

from coreai_recipes.lint.program import Value

PREFIXES = ("coreai.decomposable.broadcasting_", "coreai.")
REST = "*"  # before the key that takes all operands that are left

_X, _XY, _REDUCED = ("x",), ("x", "y"), ("x", "axes")
_CONV = ("x", "weight", "strides", "dilations", "groups")
_LOGICAL = {"and": "logical_and", "or": "logical_or", "xor": "logical_xor", "not": "logical_not"}
# what makes a weight of constants that are stored
WEIGHTS = {
    "lut_to_dense": ("constexpr_lut_to_dense", ("indices", "lut", "vector_axis")),
    "blockwise_shift_scale": ("constexpr_blockwise_shift_scale", ("data", "scale", "offset", "offset_behind")),
    "dequantize": ("constexpr_affine_dequantize", ("quantized_data", "scale", "zero_point", "offset_behind", "axis")),
}  # fmt: skip

OPERATIONS: dict[str, tuple[str, tuple[str, ...]]] = {
    **{name: (name, _X) for name in (
        "abs", "acos", "acosh", "asin", "asinh", "atan", "atanh", "cast", "cos", "cosh", "erf", "exp", "gelu", "log",
        "non_zero", "relu", "round", "rsqrt", "sigmoid", "silu", "sin", "sinh", "sqrt", "tan", "tanh",
    )},
    **{name: (name, _XY) for name in (
        "add", "equal", "greater", "maximum", "minimum", "mul", "not_equal", "pow", "sub",
    )},
    **{name: (name, _REDUCED) for name in ("reduce_max", "reduce_mean", "reduce_min", "reduce_sum")},
    "divide": ("real_div", _XY),
    "floor_divide": ("floor_div", _XY),
    "modulo": ("mod", _XY),
    "batch_matmul": ("matmul", _XY),
    "and": ("logical_and", _XY),
    "or": ("logical_or", _XY),
    "xor": ("logical_xor", _XY),
    "not": ("logical_not", _X),
    "where": ("select", ("cond", "a", "b")),
    "softmax": ("softmax", ("x", "axis")),
    "reduce_product": ("reduce_prod", _REDUCED),
    "argmax": ("reduce_argmax", ("x", "axis")),
    "conv2d": ("conv", _CONV),
    "conv3d": ("conv", _CONV),
    "conv_transpose2d": ("conv_transpose", ("x", "weight", "strides", "pad", "dilations", "output_pad", "groups")),
    "conv_transpose3d": ("conv_transpose", ("x", "weight", "strides", "pad", "dilations", "output_pad", "groups")),
    "expand_dims": ("expand_dims", _REDUCED),
    "shrink_dims": ("squeeze", _REDUCED),
    "reshape": ("reshape", ("x", "shape")),
    "transpose": ("transpose", ("x", "perm")),
    "broadcast_to": ("tile", ("x", "shape")),
    "broadcast_in_dims": ("tile", ("x", "shape", "axes")),
    "tile": ("tile", ("x", "reps")),
    "concat": ("concat", ("axis", "*values")),
    "split": ("split", ("x", "split_sizes", "axis")),
    "slice": ("slice_by_index", ("x", "begin", "end", "stride")),
    "slice_update": ("slice_update", ("x", "begin", "end", "stride", "update")),
    "pad": ("pad", ("x", "pad", "constant_val")),
    "reverse": ("reverse", _REDUCED),
    "get_shape": ("shape", _X),
    "range": ("range_1d", ("start", "end", "step")),
    "gather_along_axis": ("gather_along_axis", ("x", "indices", "axis")),
    "gather_nd": ("gather_nd", ("x", "indices")),
    "scatter_along_axis": ("scatter_along_axis", ("data", "indices", "updates", "axis")),
    "scatter_nd": ("scatter_nd", ("data", "indices", "updates")),
    "quantize": ("quantize", ("input", "scale", "zero_point", "offset_behind", "axis")),
    "dequantize": ("dequantize", ("input", "scale", "zero_point", "offset_behind", "axis")),
    "read_handle": ("read_state", ("input",)),
    "write_handle": ("write_state", ("input", "data")),
    "if": ("cond", ("pred",)),
    "while": ("while_loop", ("*loop_vars",)),
}  # fmt: skip


def named(kind: str, operands: Sequence[Value]) -> tuple[str, dict[str, tuple[Value, ...]]]:
    """What rules call an operation of Core AI, and its operands by theirs."""
    for prefix in PREFIXES:
        kind = kind.removeprefix(prefix)
    name, keys = OPERATIONS.get(kind, (kind, ("*operands",)))
    if kind in WEIGHTS and all(operand.constant for operand in operands):
        name, keys = WEIGHTS[kind]
    elif kind.startswith("bitwise_") and all(operand.dtype == "bool" for operand in operands):
        name, keys = _LOGICAL[kind.removeprefix("bitwise_")], _XY
    elif name == "gather_nd" and len(operands) > 1 and operands[1].shape[-1:] == (1,):
        name = "gather"  # whole rows, which an index each names
    return name, _bind(keys, operands)


def _bind(keys: Sequence[str], operands: Sequence[Value]) -> dict[str, tuple[Value, ...]]:
    bound: dict[str, tuple[Value, ...]] = {}
    for place, key in enumerate(keys):
        if key.startswith(REST):
            bound[key.removeprefix(REST)] = tuple(operands[place:])
        elif place < len(operands):
            bound[key] = (operands[place],)
    return bound
