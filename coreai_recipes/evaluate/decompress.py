"""What the `constexpr_` operations mean: compressed weights to the values that the engine sees.

Results are rounded as coremltools' own decompression rounds them, to the type that the program declares, whatever the
precision of the evaluation: they are the weights as stored.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from coreai_recipes.evaluate.element_types import unpack_bits

CHUNK_ELEMENTS = 4 << 20
Parameters = Mapping[str, Tensor]


def shift_and_scale(data: Tensor, scale: Tensor, offset: Tensor | None) -> Tensor:
    """scale * (data - offset), each scale for one block of data; all of one rank, result in scale's type."""
    blocks: list[int] = []
    spread: list[int] = []
    for size, count in zip(data.shape, scale.shape, strict=True):
        blocks += [count, size // count]
        spread += [count, 1]
    values = data.float().reshape(blocks)
    if offset is not None:
        # The difference is rounded on its own, because the stored definition computes in scale's type.
        values = (values - offset.float().reshape(spread)).to(scale.dtype).float()
    return (values * scale.float().reshape(spread)).to(scale.dtype).reshape(data.shape)


def look_up(indices: Tensor, table: Tensor, vector_axis: int | None) -> Tensor:
    """Values of `table` (groups of each axis..., entries, vector) at `indices`.

    A vector longer than one fills consecutive places along `vector_axis`, which grows by its length.
    """
    groups, (entries, width) = table.shape[:-2], table.shape[-2:]
    flat = table.reshape(-1, width)
    rows_per_chunk = max(1, CHUNK_ELEMENTS // max(1, indices[:1].numel()))
    found = [
        flat[_entry_numbers(indices, groups, entries, first, min(first + rows_per_chunk, indices.shape[0]))]
        for first in range(0, indices.shape[0], rows_per_chunk)
    ]
    values = torch.cat(found) if len(found) > 1 else found[0]  # (*indices.shape, width)
    if width == 1 and vector_axis is None:
        return values.squeeze(-1)
    axis = (vector_axis or 0) % indices.dim()
    return values.movedim(-1, axis + 1).flatten(axis, axis + 1)


def _entry_numbers(indices: Tensor, groups: torch.Size, entries: int, first: int, last: int) -> Tensor:
    """The row in the flattened table of each index in rows first..last, int64."""
    numbers = indices[first:last].long()
    stride = entries
    for axis in reversed(range(indices.dim())):
        if groups[axis] > 1:
            places = torch.arange(first, last) if axis == 0 else torch.arange(indices.shape[axis])
            group = places // (indices.shape[axis] // groups[axis]) * stride
            numbers += group.reshape(-1, *[1] * (indices.dim() - axis - 1))
        stride *= groups[axis]
    return numbers


def spread_nonzero(mask: Tensor, nonzero: Tensor) -> Tensor:
    """Zeros of mask's shape with `nonzero`, in row-major order, where the mask is set."""
    dense = torch.zeros(mask.shape, dtype=nonzero.dtype)
    dense[mask != 0] = nonzero
    return dense


def _vector_axis(parameters: Parameters) -> int | None:
    return int(parameters["vector_axis"]) if "vector_axis" in parameters else None


def _blockwise_shift_scale(parameters: Parameters) -> tuple[Tensor, ...]:
    return (shift_and_scale(parameters["data"], parameters["scale"], parameters.get("offset")),)


def _affine_dequantize(parameters: Parameters) -> tuple[Tensor, ...]:
    data, axis = parameters["quantized_data"], int(parameters["axis"])

    def along_axis(values: Tensor) -> Tensor:
        shape = [1] * data.dim()
        if values.dim():
            shape[axis] = -1
        return values.reshape(shape)

    scale = along_axis(parameters["scale"])
    difference = (data.float() - along_axis(parameters["zero_point"]).float()).to(scale.dtype)
    return ((difference.float() * scale.float()).to(scale.dtype),)


def _lut_to_dense(parameters: Parameters) -> tuple[Tensor, ...]:
    indices, table = parameters["indices"], parameters["lut"]
    if table.dim() > 1:
        return (look_up(indices, table, _vector_axis(parameters)),)
    # iOS 16 packs the indices of one flat table into bytes and states the shape apart.
    shape = parameters["shape"].tolist()
    bits = table.numel().bit_length() - 1
    count = int(torch.tensor(shape).prod())
    numbers = torch.from_numpy(unpack_bits(indices.numpy(), bits, count)).reshape(shape)
    return (look_up(numbers, table.reshape([1] * len(shape) + [-1, 1]), None),)


def _sparse_to_dense(parameters: Parameters) -> tuple[Tensor, ...]:
    mask = parameters["mask"]
    if "shape" in parameters:  # iOS 16: one bit an element, packed
        shape = parameters["shape"].tolist()
        count = int(torch.tensor(shape).prod())
        mask = torch.from_numpy(unpack_bits(mask.numpy(), 1, count)).reshape(shape)
    return (spread_nonzero(mask, parameters["nonzero_data"]),)


def _lut_to_sparse(parameters: Parameters) -> tuple[Tensor, ...]:
    mask, axis = parameters["indices_mask"], _vector_axis(parameters)
    values = look_up(spread_nonzero(mask, parameters["indices_nonzero_data"]), parameters["lut"], axis)
    if axis is not None:
        mask = mask.repeat_interleave(parameters["lut"].shape[-1], axis)
    return mask, values[mask != 0]


def _sparse_blockwise_shift_scale(parameters: Parameters) -> tuple[Tensor, ...]:
    mask = parameters["data_mask"]
    data = spread_nonzero(mask, parameters["nonzero_data"])
    return mask, shift_and_scale(data, parameters["scale"], parameters.get("offset"))[mask != 0]


def _cast(parameters: Parameters) -> tuple[Tensor, ...]:
    return (parameters["source_val"].float(),)


DECOMPRESSIONS: dict[str, Callable[[Parameters], tuple[Tensor, ...]]] = {
    "constexpr_affine_dequantize": _affine_dequantize,
    "constexpr_blockwise_shift_scale": _blockwise_shift_scale,
    "constexpr_cast": _cast,
    "constexpr_lut_to_dense": _lut_to_dense,
    "constexpr_lut_to_sparse": _lut_to_sparse,
    "constexpr_sparse_blockwise_shift_scale": _sparse_blockwise_shift_scale,
    "constexpr_sparse_to_dense": _sparse_to_dense,
}
