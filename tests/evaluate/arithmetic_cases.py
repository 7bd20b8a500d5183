"""Cases of what computes: elementwise functions, matrix products, norms and reductions."""

import numpy as np
import torch
import torch.nn.functional as F
from coremltools.converters.mil.mil import Builder as mb
from operation_case import OTHER, X, array, case, elementwise, integers, normal, uniform

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
