"""Cases of what moves: layout, slices, gathers and scatters; tensors out of numbers, and quantisation."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from coremltools.converters.mil.mil import Builder as mb
from operation_case import X, case, elementwise, integers, normal
from torch import Tensor

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
