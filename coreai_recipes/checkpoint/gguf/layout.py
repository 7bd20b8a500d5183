"""How a converter lays out a tensor that transformers has otherwise, and what undoes it."""

from dataclasses import dataclass
from math import prod
from typing import Any, Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """What llama.cpp's converter does to a tensor, told from how transformers' name ends; nothing by default.

    Attributes:
        interleaved: the config field that counts the heads whose two halves take turns row by row.
        shifted: one was added (a norm's weight).
        logarithm: -exp(x) is stored. log undoes it, but for what float32 rounded: 2**-23 (1 + |x|) at most.
        axes: `flat` where transformers has one axis, `row` where it has (1, columns), `squeezed` where it has
            (rows, 1, columns), `heads` where it has (1, 1, heads, 1).
        value_heads: what is in the order of value heads: all `rows`, the `last_rows`, or the `columns`. transformers
            has the value heads of each key head together, the file the first of every key head, then the second.
    """

    interleaved: str | None = None
    shifted: bool = False
    logarithm: bool = False
    axes: Literal["flat", "row", "squeezed", "heads"] | None = None
    value_heads: Literal["rows", "last_rows", "columns"] | None = None

    def shape(self, stored: tuple[int, ...]) -> tuple[int, ...]:
        """transformers' shape of a tensor of that shape in a file, in the same order of values."""
        if self.axes == "flat":
            return (prod(stored),)
        if self.axes == "row":
            return (1, prod(stored))
        if self.axes == "heads":
            return (1, 1, prod(stored), 1)
        if self.axes == "squeezed":
            return (prod(stored[:-1]), 1, stored[-1])
        return stored


AS_IT_IS = Layout()


def value_head_order(config: dict[str, Any]) -> list[int]:
    """Which stored head each of transformers' value heads is (conversion/qwen.py, `_reorder_v_heads`)."""
    keys, values = config["linear_num_key_heads"], config["linear_num_value_heads"]
    return torch.arange(values).view(values // keys, keys).T.flatten().tolist()


def restore(block: Tensor, layout: Layout, head_dim: int | None, columns: Tensor | None) -> Tensor:
    """Rows as transformers has them; `head_dim` is that of interleaved rows, `columns` the stored ones in its order."""
    if head_dim is not None:
        heads = block.reshape(-1, head_dim // 2, 2, *block.shape[1:])
        block = heads.transpose(1, 2).reshape(block.shape)
    if columns is not None:
        block = block[:, columns]
    if layout.logarithm:
        block = (-block.double()).log().float()
    return block.float() - 1.0 if layout.shifted else block
