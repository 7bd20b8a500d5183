"""Numbers of fewer bits than a byte has, packed as Core ML packs them."""

import numpy as np
from numpy.typing import NDArray

BITS_IN_A_BYTE = 8


def pack_bits(values: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """`values` in so many bits each, the first in the lowest bits of the first byte."""
    if bits == BITS_IN_A_BYTE:
        return values
    from coreai_recipes.storage.kernels import pack_eights

    whole = np.concatenate((values, np.zeros(-len(values) % 8, np.uint8))) if len(values) % 8 else values
    packed = np.empty(len(whole) * bits // 8, np.uint8)
    pack_eights(whole, bits, packed)
    return packed[: -(-len(values) * bits // 8)]


def unpack_bits(packed: NDArray[np.uint8], bits: int, count: int) -> NDArray[np.uint8]:
    from coreai_recipes.storage.kernels import unpack_eights

    eights = -(-count // 8)
    whole = np.concatenate((packed, np.zeros(eights * bits - len(packed), np.uint8)))
    numbers = np.empty(8 * eights, np.uint8)
    unpack_eights(whole, bits, numbers)
    return numbers[:count]
