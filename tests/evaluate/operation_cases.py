"""One case at least for each registered operation: how MIL builds it, and what torch says the result is.

A case's operation is its name up to the first space. `inputs` are the values of the program's inputs; everything else
that a builder is given is a constant.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from coremltools.converters.mil.mil import Builder as mb
from torch import Tensor


@dataclass(frozen=True)
class Case:
    name: str
    inputs: tuple[Tensor, ...]
    build: Callable[..., Any]
    expected: Callable[..., Any]

    @property
    def operation(self) -> str:
        return self.name.split()[0]


generator = torch.Generator().manual_seed(0)


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=generator)


def uniform(*shape: int) -> Tensor:
    return torch.rand(shape, generator=generator) * 0.9 + 0.05


def integers(*values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def array(values: Tensor) -> Any:
    return values.numpy()


CASES: list[Case] = []


def case(name: str, inputs: Any, build: Callable[..., Any], expected: Callable[..., Any]) -> None:
    CASES.append(Case(name, inputs if isinstance(inputs, tuple) else (inputs,), build, expected))


def elementwise(name: str, expected: Callable[..., Tensor], *inputs: Tensor, **parameters: Any) -> None:
    keys = ("x", "y")[: len(inputs)]
    operation = name.split()[0]
    case(
        name,
        inputs,
        lambda *variables: getattr(mb, operation)(**dict(zip(keys, variables, strict=True)), **parameters),
        expected,
    )


X = normal(2, 3, 4, 5) * 2
OTHER = normal(3, 1, 5)

# Elementwise functions of one tensor.
for _name, _expected in {
    "abs": torch.abs,
    "atan": torch.atan,
    "ceil": torch.ceil,
    "cos": torch.cos,
    "cosh": torch.cosh,
    "erf": torch.erf,
    "exp": torch.exp,
    "exp2": torch.exp2,
    "floor": torch.floor,
    "relu": torch.relu,
    "relu6": F.relu6,
    "round": torch.round,
    "sigmoid": torch.sigmoid,
    "sign": torch.sign,
    "silu": F.silu,
    "sin": torch.sin,
    "sinh": torch.sinh,
    "softplus": F.softplus,
    "softsign": F.softsign,
    "square": torch.square,
    "tan": torch.tan,
    "tanh": torch.tanh,
    "identity": lambda x: x,
}.items():
    elementwise(_name, _expected, X)
for _name, _expected in {"acos": torch.acos, "asin": torch.asin, "atanh": torch.atanh, "sqrt": torch.sqrt}.items():
    elementwise(_name, _expected, uniform(2, 3))
elementwise("rsqrt", lambda x: 1 / torch.sqrt(x + 0.5), uniform(2, 3), epsilon=0.5)
elementwise("log", lambda x: torch.log(x + 0.5), uniform(2, 3), epsilon=0.5)
elementwise("inverse", lambda x: 1 / (x + 0.5), uniform(2, 3), epsilon=0.5)
elementwise("gelu exact", F.gelu, X, mode="EXACT")
elementwise("gelu tanh", lambda x: F.gelu(x, approximate="tanh"), X, mode="TANH_APPROXIMATION")
elementwise("gelu sigmoid", lambda x: x * torch.sigmoid(1.702 * x), X, mode="SIGMOID_APPROXIMATION")
elementwise("clip", lambda x: x.clamp(-1, 0.5), X, alpha=-1.0, beta=0.5)
elementwise("threshold", lambda x: x.clamp(min=0.25), X, alpha=0.25)
elementwise("thresholded_relu", lambda x: torch.where(x >= 0.25, x, 0), X, alpha=0.25)
elementwise("leaky_relu", lambda x: F.leaky_relu(x, 0.1), X, alpha=0.1)
elementwise(
    "clamped_relu", lambda x: torch.where(x >= 0, x.clamp(max=1.5), (0.1 * x).clamp(max=1.5)), X, alpha=0.1, beta=1.5
)
elementwise("elu", lambda x: F.elu(x, 0.7), X, alpha=0.7)
elementwise("linear_activation", lambda x: 0.5 * x + 0.25, X, alpha=0.5, beta=0.25)
elementwise("sigmoid_hard", lambda x: (0.2 * x + 0.5).clamp(0, 1), X, alpha=0.2, beta=0.5)
elementwise("scaled_tanh", lambda x: 1.5 * torch.tanh(0.5 * x), X, alpha=1.5, beta=0.5)
SLOPES = uniform(3)
elementwise("prelu", lambda x: F.prelu(x, SLOPES), X, alpha=array(SLOPES))
elementwise(
    "softplus_parametric",
    lambda x: SLOPES[:, None, None] * torch.log1p(torch.exp(2 * x)),
    X,
    alpha=array(SLOPES),
    beta=np.full(3, 2, np.float32),
)
elementwise("logical_not", torch.logical_not, X > 0)
elementwise("cast to int32", lambda x: x.trunc().int(), X, dtype="int32")
elementwise("cast to bool", lambda x: x != 0, integers(0, 1, 2), dtype="bool")
elementwise("cast to fp32", lambda x: x.float(), integers(0, 1, 2), dtype="fp32")
case(
    "cast to uint16",
    integers(3, 40000),
    lambda x: mb.cast(x=mb.cast(x=x, dtype="uint16"), dtype="int32"),
    lambda x: x,
)

# Elementwise functions of two tensors, broadcast, and with a scalar on either side.
for _name, _expected in {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "real_div": torch.div,
    "floor_div": lambda x, y: torch.floor(x / y),
    "mod": torch.remainder,
    "equal": torch.eq,
    "not_equal": torch.ne,
    "less": torch.lt,
    "less_equal": torch.le,
    "greater": torch.gt,
    "greater_equal": torch.ge,
}.items():
    elementwise(_name, _expected, X, OTHER)
    elementwise(f"{_name} scalar", lambda x, f=_expected: f(x, torch.tensor(0.75)), X, y=np.float32(0.75))
    case(
        f"{_name} scalar first",
        X,
        lambda x, name=_name: getattr(mb, name)(x=np.float32(0.75), y=x),
        lambda x, f=_expected: f(torch.tensor(0.75), x),
    )
elementwise("pow", torch.pow, uniform(2, 3), normal(3))
elementwise("pow scalar", lambda x: x**3, X, y=np.float32(3))
WHOLE = integers(-7, -1, 0, 5, 9)
elementwise("add integers", torch.add, WHOLE, integers(3, -4, 5, 6, 7))
elementwise("floor_div integers", lambda x: torch.floor_divide(x, 3), WHOLE, y=3)
elementwise("mod integers", lambda x: torch.remainder(x, 4), WHOLE, y=4)
for _name, _expected in {
    "logical_and": torch.logical_and,
    "logical_or": torch.logical_or,
    "logical_xor": torch.logical_xor,
}.items():
    elementwise(_name, _expected, X > 0, OTHER > 0)
case("select", (X > 0, X, OTHER), lambda c, a, b: mb.select(cond=c, a=a, b=mb.add(x=b, y=X.numpy() * 0)), torch.where)

# Matrix products.
elementwise("matmul", torch.matmul, normal(2, 3, 4), normal(2, 4, 5))
case(
    "matmul transposed",
    (normal(2, 4, 3), normal(2, 5, 4)),
    lambda x, y: mb.matmul(x=x, y=y, transpose_x=True, transpose_y=True),
    lambda x, y: x.mT @ y.mT,
)
case("matmul x transposed", normal(4, 3), lambda x: mb.matmul(x=x, y=x, transpose_x=True), lambda x: x.T @ x)
case("matmul y transposed", normal(4, 3), lambda x: mb.matmul(x=x, y=x, transpose_y=True), lambda x: x @ x.T)
WEIGHT, BIAS = normal(6, 5), normal(6)
elementwise("linear", lambda x: F.linear(x, WEIGHT), X, weight=array(WEIGHT))
elementwise("linear bias", lambda x: F.linear(x, WEIGHT, BIAS), X, weight=array(WEIGHT), bias=array(BIAS))
POINT = normal(6, 8, 1, 1)
for _shape in ((1, 8, 1, 1), (1, 8, 1, 7), (2, 8, 3, 7)):
    for _bias in (None, BIAS):
        elementwise(
            f"conv pointwise {_shape} {_bias is not None}",
            lambda x, b=_bias: F.conv2d(x, POINT, b),
            normal(*_shape),
            weight=array(POINT),
            **({} if _bias is None else {"bias": array(_bias)}),
        )
case(
    "conv with a computed weight",
    (normal(1, 8, 1, 1), POINT),
    lambda x, w: mb.conv(x=x, weight=w),
    F.conv2d,
)
GROUPED = normal(6, 4, 3, 2)
elementwise(
    "conv groups",
    lambda x: F.conv2d(F.pad(x, (1, 0, 1, 2)), GROUPED, BIAS, (2, 1), 0, (1, 2), 2),
    normal(2, 8, 9, 9),
    weight=array(GROUPED),
    bias=array(BIAS),
    strides=[2, 1],
    dilations=[1, 2],
    groups=2,
    pad_type="custom",
    pad=[1, 2, 1, 0],
)
LINE = normal(4, 3, 3)
elementwise("conv same", lambda x: F.conv1d(x, LINE, padding=1), normal(2, 3, 9), weight=array(LINE), pad_type="same")
case(
    "einsum",
    (normal(2, 3, 4, 5), normal(2, 5, 4, 6)),
    lambda x, y: mb.einsum(values=(x, y), equation="nchw,nwhu->nchu"),
    lambda x, y: torch.einsum("nchw,nwhu->nchu", x, y),
)
case(
    "scaled_dot_product_attention",
    (normal(2, 3, 4, 8), normal(2, 3, 6, 8), normal(2, 3, 6, 5), normal(4, 6)),
    lambda q, k, v, m: mb.scaled_dot_product_attention(query=q, key=k, value=v, attn_mask=m),
    F.scaled_dot_product_attention,
)
case(
    "scaled_dot_product_attention bool",
    (normal(1, 3, 4, 8), normal(1, 3, 4, 8), normal(1, 3, 4, 8), torch.ones(4, 4).tril().bool()),
    lambda q, k, v, m: mb.scaled_dot_product_attention(query=q, key=k, value=v, attn_mask=m),
    F.scaled_dot_product_attention,
)

# Norms.
GAMMA, BETA = normal(5), normal(5)
elementwise("layer_norm", lambda x: F.layer_norm(x, (4, 5), eps=0.1), X, axes=[2, 3], epsilon=0.1)
elementwise(
    "layer_norm scaled",
    lambda x: F.layer_norm(x, (5,), GAMMA, BETA, 0.1),
    X,
    axes=[-1],
    gamma=array(GAMMA),
    beta=array(BETA),
    epsilon=0.1,
)
elementwise(
    "layer_norm over channels",
    lambda x: F.layer_norm(x.movedim(1, -1), (3,), SLOPES, SLOPES, 0.1).movedim(-1, 1),
    X,
    axes=[1],
    gamma=array(SLOPES),
    beta=array(SLOPES),
    epsilon=0.1,
)
elementwise(
    "instance_norm",
    lambda x: F.instance_norm(x, weight=SLOPES, bias=SLOPES, eps=0.1),
    X,
    gamma=array(SLOPES),
    beta=array(SLOPES),
    epsilon=0.1,
)
elementwise(
    "batch_norm",
    lambda x: F.batch_norm(x, SLOPES, SLOPES, SLOPES, SLOPES, False, 0.1, 0.1),
    X,
    **dict.fromkeys(("mean", "variance", "gamma", "beta"), array(SLOPES)),
    epsilon=0.1,
)
elementwise("l2_norm", lambda x: x / torch.sqrt((x * x).sum((1, 2, 3), keepdim=True) + 0.1), X, epsilon=0.1)
elementwise(
    "local_response_norm", lambda x: F.local_response_norm(x, 3, 0.1, 0.5, 2.0), X, size=3, alpha=0.1, beta=0.5, k=2.0
)
elementwise("softmax", lambda x: torch.softmax(x, 1), X, axis=1)

# Reductions.
for _name, _reduce in {
    "reduce_l1_norm": lambda x, a, k: x.abs().sum(a, k),
    "reduce_l2_norm": lambda x, a, k: (x * x).sum(a, k).sqrt(),
    "reduce_log_sum": lambda x, a, k: x.sum(a, k).log(),
    "reduce_log_sum_exp": lambda x, a, k: x.logsumexp(a, k),
    "reduce_max": lambda x, a, k: x.amax(a, k),
    "reduce_mean": lambda x, a, k: x.mean(a, k),
    "reduce_min": lambda x, a, k: x.amin(a, k),
    "reduce_prod": lambda x, a, k: x.prod(a[1], True).prod(a[0], True) if k else x.prod(a[1]).prod(a[0]),
    "reduce_sum": lambda x, a, k: x.sum(a, k),
    "reduce_sum_square": lambda x, a, k: (x * x).sum(a, k),
}.items():
    for _keep in (True, False):
        elementwise(
            f"{_name} keep {_keep}",
            lambda x, f=_reduce, k=_keep: f(x, (1, 3), k),
            uniform(2, 3, 4, 5),
            axes=[1, -1],
            keep_dims=_keep,
        )
elementwise("reduce_sum of integers", lambda x: x.sum(0, True).int(), WHOLE, axes=[0], keep_dims=True)
elementwise("reduce_argmax", lambda x: x.argmax(1, True).int(), X, axis=1, keep_dims=True)
elementwise("reduce_argmin", lambda x: x.argmin(-1).int(), X, axis=-1, keep_dims=False)
elementwise("cumsum", lambda x: x.cumsum(1), X, axis=1)
elementwise(
    "cumsum exclusive, reversed",
    lambda x: x.flip(1).cumsum(1).flip(1) - x,
    X,
    axis=1,
    exclusive=True,
    reverse=True,
)
elementwise("cumsum of integers", lambda x: x.cumsum(0).int(), WHOLE, axis=0)
case("topk", X, lambda x: mb.topk(x=x, k=3, axis=2), lambda x: [x.topk(3, 2)[0], x.topk(3, 2)[1].int()])
case(
    "topk ascending",
    X,
    lambda x: mb.topk(x=x, k=2, axis=-1, ascending=True)[0],
    lambda x: x.topk(2, -1, largest=False)[0],
)
elementwise("argsort", lambda x: x.argsort(1, True).int(), X, axis=1)
elementwise("argsort ascending", lambda x: x.argsort(-1).int(), X, axis=-1, ascending=True)

# Layout.
elementwise("reshape", lambda x: x.reshape(6, 20), X, shape=[6, -1])
elementwise("reshape zero", lambda x: x.reshape(2, 3, 2, 10), X, shape=[0, 0, -1, 10])
case(
    "reshape to a computed shape with a zero",
    (X, integers(0, -1, 4, 5)),
    lambda x, s: mb.reshape(x=x, shape=s),
    lambda x, s: x,
)
case(
    "reshape to a computed shape",
    (X, integers(6, 20)),
    lambda x, s: mb.reshape(x=x, shape=s),
    lambda x, s: x.reshape(6, 20),
)
case(
    "reshape_like",
    (X, normal(6, 20)),
    lambda x, y: mb.reshape_like(x=x, ref_tensors=(y,), begins=[0], ends=[2], end_masks=[False]),
    lambda x, y: x.reshape(6, 20),
)
elementwise("flatten2d", lambda x: x.reshape(6, 20), X, axis=2)
elementwise("transpose", lambda x: x.permute(0, 2, 3, 1), X, perm=[0, 2, 3, 1])
elementwise("transpose two", lambda x: x.transpose(1, 3), X, perm=[0, 3, 2, 1])
elementwise("transpose none", lambda x: x, X, perm=[0, 1, 2, 3])
elementwise("expand_dims", lambda x: x[None, :, None], normal(3, 4), axes=[0, 2])
elementwise("expand_dims last", lambda x: x[..., None], normal(3, 4), axes=[-1])
elementwise("squeeze", lambda x: x.squeeze(2), normal(1, 3, 1), axes=[-1])
elementwise("squeeze all", lambda x: x.squeeze(), normal(1, 3, 1))
case("concat", (X, X), lambda x, y: mb.concat(values=(x, y), axis=-1), lambda x, y: torch.cat((x, y), -1))
case(
    "concat interleaved",
    (X, X),
    lambda x, y: mb.concat(values=(x, y), axis=1, interleave=True),
    lambda x, y: torch.stack((x, y), 2).flatten(1, 2),
)
case("stack", (X, X), lambda x, y: mb.stack(values=(x, y), axis=1), lambda x, y: torch.stack((x, y), 1))
case("split", X, lambda x: mb.split(x=x, num_splits=2, axis=2), lambda x: list(x.split(2, 2)))
case("split sizes", X, lambda x: mb.split(x=x, split_sizes=[1, 3], axis=2), lambda x: list(x.split([1, 3], 2)))
elementwise("tile", lambda x: x.repeat(1, 2, 1, 3), X, reps=[1, 2, 1, 3])
case("tile computed", (normal(2, 3), integers(2, 1)), lambda x, r: mb.tile(x=x, reps=r), lambda x, r: x.repeat(2, 1))
elementwise("reverse", lambda x: x.flip(1, 3), X, axes=[1, -1])
elementwise("pad", lambda x: F.pad(x, (3, 4, 1, 2), value=0.5), X, pad=[1, 2, 3, 4], mode="constant", constant_val=0.5)
elementwise("pad reflected", lambda x: F.pad(x, (2, 1), mode="reflect"), normal(2, 3, 5), pad=[2, 1], mode="reflect")
elementwise(
    "pad replicated", lambda x: F.pad(x, (2, 1), mode="replicate"), normal(2, 3, 5), pad=[0, 0, 2, 1], mode="replicate"
)
case(
    "pad computed",
    (normal(2, 3), integers(0, 1, 2, 0)),
    lambda x, p: mb.pad(x=x, pad=p),
    lambda x, p: F.pad(x, (2, 0, 0, 1)),
)
elementwise("pixel_shuffle", lambda x: F.pixel_shuffle(x, 2), normal(2, 8, 3, 4), upscale_factor=2)
elementwise("pixel_unshuffle", lambda x: F.pixel_unshuffle(x, 2), normal(2, 3, 4, 6), downscale_factor=np.uint32(2))
BLOCKS = normal(2, 8, 3, 4)


def depth_to_space(x: Tensor) -> Tensor:
    batch, channels, height, width = x.shape
    blocks = x.reshape(batch, 2, 2, channels // 4, height, width).permute(0, 3, 4, 1, 5, 2)
    return blocks.reshape(batch, channels // 4, 2 * height, 2 * width)


elementwise("depth_to_space", depth_to_space, BLOCKS, block_size=2)
elementwise("space_to_depth", lambda x: BLOCKS, depth_to_space(BLOCKS), block_size=2)
elementwise(
    "sliding_windows",
    lambda x: torch.stack([x[:, start : start + 3] for start in (0, 2, 4)], 1),
    normal(2, 7, 3),
    axis=1,
    size=3,
    stride=2,
)

# Slices.
elementwise("slice_by_index", lambda x: x[:, 1:3], X, begin=[0, 1, 0, 0], end=[2, 3, 4, 5])
elementwise(
    "slice_by_index masks",
    lambda x: x[:, 1:, :-1, 2],
    X,
    begin=[9, 1, 0, 2],
    end=[9, 9, -1, 9],
    begin_mask=[True, False, False, False],
    end_mask=[True, True, False, False],
    squeeze_mask=[False, False, False, True],
)
elementwise(
    "slice_by_index strides", lambda x: x[..., 1::2], X, begin=[0, 0, 0, 1], end=[2, 3, 4, 5], stride=[1, 1, 1, 2]
)
elementwise(
    "slice_by_index backwards",
    lambda x: x.flip(3)[..., :3],
    X,
    begin=[0, 0, 0, -1],
    end=[2, 3, 4, 1],
    stride=[1, 1, 1, -1],
)
elementwise(
    "slice_by_index one",
    lambda x: x[:, -1],
    X,
    begin=[0, -1, 0, 0],
    end=[2, 0, 4, 5],
    squeeze_mask=[False, True, False, False],
)
case(
    "slice_by_index computed",
    (X, integers(0, 1, 0, 0), integers(2, 3, 4, 5)),
    lambda x, b, e: mb.slice_by_index(x=x, begin=b, end=e),
    lambda x, b, e: x[:, 1:3],
)
elementwise("slice_by_size", lambda x: x[:, 1:3, 1:], X, begin=[0, 1, 1, 0], size=[2, 2, -1, 5])
case(
    "slice_update",
    (X, normal(2, 2, 4, 5), integers(0, 1, 0, 0)),
    lambda x, u, b: mb.slice_update(x=x, update=u, begin=b, end=[0, 3, 0, 0], end_mask=[True, False, True, True]),
    lambda x, u, b: torch.cat((x[:, :1], u), 1),
)
case(
    "slice_update with a stride",
    (normal(6), normal(3)),
    lambda x, u: mb.slice_update(x=x, update=u, begin=[1], end=[6], stride=[2]),
    lambda x, u: torch.stack((x[::2], u), 1).flatten(),
)

# Gathers and scatters.
case("gather", (X, integers(2, 0, 1, 2)), lambda x, i: mb.gather(x=x, indices=i, axis=1), lambda x, i: x[:, i])
case(
    "gather matrix",
    (X, integers([3, 0], [1, 2])),
    lambda x, i: mb.gather(x=x, indices=i, axis=-2),
    lambda x, i: x[:, :, i],
)
case("gather scalar", X, lambda x: mb.gather(x=x, indices=np.int32(1), axis=1), lambda x: x[:, 1])
case(
    "gather in batches",
    (normal(2, 4, 3), integers([3, 0, 1], [1, 2, 2])),
    lambda x, i: mb.gather(x=x, indices=i, axis=1, batch_dims=1),
    lambda x, i: torch.stack([part[place] for part, place in zip(x, i, strict=True)]),
)
ALONG = integers([2, 0, 1, 1], [0, 0, 2, 1])
case(
    "gather_along_axis",
    (normal(3, 4), ALONG),
    lambda x, i: mb.gather_along_axis(x=x, indices=i, axis=0),
    lambda x, i: x.gather(0, i.long()),
)
case(
    "gather_nd",
    (X, integers([1, 2], [0, 0], [1, 0])),
    lambda x, i: mb.gather_nd(x=x, indices=i),
    lambda x, i: x[i[:, 0], i[:, 1]],
)
case(
    "gather_nd in batches",
    (X, integers([[1, 2], [0, 0]], [[2, 3], [1, 1]])),
    lambda x, i: mb.gather_nd(x=x, indices=i, batch_dims=1),
    lambda x, i: torch.stack([part[place[:, 0], place[:, 1]] for part, place in zip(x, i, strict=True)]),
)
_MODES: dict[str, Callable[[Tensor, Any, Tensor], None]] = {
    "add": lambda x, i, u: x.__setitem__(i, x[i] + u),
    "sub": lambda x, i, u: x.__setitem__(i, x[i] - u),
    "mul": lambda x, i, u: x.__setitem__(i, x[i] * u),
    "div": lambda x, i, u: x.__setitem__(i, x[i] / u),
    "max": lambda x, i, u: x.__setitem__(i, torch.maximum(x[i], u)),
    "min": lambda x, i, u: x.__setitem__(i, torch.minimum(x[i], u)),
    "update": lambda x, i, u: x.__setitem__(i, u),
}


def scattered(mode: str, along: Callable[[Tensor], Any]) -> Callable[..., Tensor]:
    def expected(data: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
        result = data.clone()
        _MODES[mode](result, along(indices), updates)
        return result

    return expected


for _mode in _MODES:
    case(
        f"scatter {_mode}",
        (normal(2, 4, 3), integers(2, 0), normal(2, 2, 3)),
        lambda d, i, u, m=_mode: mb.scatter(data=d, indices=i, updates=u, axis=1, mode=m),
        scattered(_mode, lambda i: (slice(None), i)),
    )
    case(
        f"scatter_nd {_mode}",
        (normal(2, 4, 3), integers([1, 3], [0, 0]), normal(2, 3)),
        lambda d, i, u, m=_mode: mb.scatter_nd(data=d, indices=i, updates=u, mode=m),
        scattered(_mode, lambda i: (i[:, 0], i[:, 1])),
    )
    case(
        f"scatter_along_axis {_mode}",
        (normal(3, 2), integers([1, 2]), normal(1, 2)),
        lambda d, i, u, m=_mode: mb.scatter_along_axis(data=d, indices=i, updates=u, axis=0, mode=m),
        scattered(_mode, lambda i: (i, torch.arange(2)[None])),
    )
case(
    "scatter at a matrix of indices",
    (normal(2, 5, 3), integers([0, 2], [4, 1]), normal(2, 2, 2, 3)),
    lambda d, i, u: mb.scatter(data=d, indices=i, updates=u, axis=1, mode="update"),
    scattered("update", lambda i: (slice(None), i)),
)


def scores_of_best_rows(x: Tensor, clusters: Tensor, ordering: Tensor, table: Tensor) -> Tensor:
    """Scores (1, V) of the rows that the best two clusters of x (1, C) hold, elsewhere one less than the lowest."""
    rows = ordering[(x @ clusters.T).topk(2).indices[0]].flatten().long()
    scores = x @ table[rows].T
    return torch.full((1, len(table)), scores.min() - 1).scatter(1, rows[None], scores)


def build_scores_of_best_rows(x: Any, clusters: Any, ordering: Any, table: Any) -> Any:
    _, best = mb.topk(x=mb.matmul(x=x, y=clusters, transpose_y=True), k=2, axis=1)
    rows = mb.reshape(x=mb.gather(x=ordering, indices=best, axis=0), shape=[1, -1])
    scores = mb.squeeze(
        x=mb.matmul(x=mb.gather(x=table, indices=rows, axis=0), y=mb.expand_dims(x=x, axes=[2])), axes=[2]
    )
    lowest = mb.sub(x=mb.reduce_min(x=scores, axes=[1], keep_dims=True), y=np.float32(1))
    return mb.scatter_along_axis(
        data=mb.tile(x=lowest, reps=[1, 12]), indices=rows, updates=scores, axis=1, mode="update"
    )


case(
    "topk to the scores of a whole vocabulary",  # as an ordered-embedding head has it
    (normal(1, 5), normal(4, 5), integers([7, 0, 3], [11, 2, 5], [1, 4, 9], [10, 6, 8]), normal(12, 5)),
    build_scores_of_best_rows,
    scores_of_best_rows,
)
case(
    "one_hot of the best",
    X,
    lambda x: mb.one_hot(indices=mb.topk(x=x, k=2, axis=1)[1], one_hot_vector_size=3, axis=-1),
    lambda x: F.one_hot(x.topk(2, 1).indices, 3).int(),
)
case(
    "topk in uint16",
    X,
    lambda x: mb.cast(x=mb.topk(x=x, k=2, axis=3, output_indices_dtype="uint16")[1], dtype="int32"),
    lambda x: x.topk(2, 3).indices.int(),
)
case("non_zero", X, lambda x: mb.non_zero(x=mb.relu(x=x)), lambda x: x.relu().nonzero().int())
case(
    "one_hot",
    integers(2, 0, 7),
    lambda i: mb.one_hot(indices=i, one_hot_vector_size=4, axis=0, on_value=2.0, off_value=-1.0),
    lambda i: torch.where(torch.arange(4)[:, None] == i, 2.0, -1.0),
)

# Tensors out of numbers.
case("fill", integers(2, 3), lambda s: mb.fill(shape=s, value=1.5), lambda s: torch.full((2, 3), 1.5))
case("fill_like", X, lambda x: mb.fill_like(ref_tensor=x, value=1.5), lambda x: torch.full_like(x, 1.5))
case(
    "range_1d",
    integers(9),
    lambda n: mb.range_1d(start=1, end=mb.squeeze(x=n, axes=[0]), step=2),
    lambda n: integers(1, 3, 5, 7),
)
case("shape", X, lambda x: mb.shape(x=x), lambda x: integers(2, 3, 4, 5))
elementwise("band_part", lambda x: x.triu(-1).tril(2), X, lower=1, upper=2)
elementwise("band_part lower", lambda x: x.tril(0), X, lower=-1, upper=0)
elementwise("band_part all", lambda x: x, X, lower=-1, upper=-1)

# Quantisation at run time.
case(
    "quantize",
    X,
    lambda x: mb.cast(
        x=mb.quantize(
            input=x, scale=np.float32([0.1, 0.2, 0.3]), zero_point=np.int8([1, -2, 3]), axis=1, output_dtype="int8"
        ),
        dtype="int32",
    ),
    lambda x: (
        torch.round(x / torch.tensor([0.1, 0.2, 0.3])[:, None, None])
        .add(torch.tensor([1, -2, 3])[:, None, None])
        .clamp(-128, 127)
        .int()
    ),
)
case(
    "dequantize",
    X,
    lambda x: mb.dequantize(
        input=mb.quantize(input=x, scale=np.float32(0.5), output_dtype="uint8", zero_point=np.uint8(9)),
        scale=np.float32(0.5),
        zero_point=np.uint8(9),
    ),
    lambda x: 0.5 * (torch.round(x / 0.5).add(9).clamp(0, 255) - 9),
)
