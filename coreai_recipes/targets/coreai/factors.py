"""Products by several scalars, as `primitives.constants.scaled` makes them, kept exact.

Core AI's compiler joins x * a * b to x * (a * b), whose constant it rounds to float16: for head_dim^-0.5 that is off by
up to 2.4e-4, which costs 40 dB of the logits. x * high + x * low, the two halves of one factor, stays as it is.
"""

from typing import Any

import numpy as np
import torch
from torch.fx import Graph, Node

PRODUCTS = {torch.ops.aten.mul.Tensor, torch.ops.aten.mul.Scalar}
NORMAL = 2.0**-14  # the least normal float16
SMALLEST, LARGEST = 2.0**-11, 2.0**15  # between these a factor is the sum of two that are normal
NEIGHBOURS = 256


def keep_factors(graph: Graph) -> None:
    """Put x * high + x * low for each row of products by scalars whose product float16 does not hold."""
    for node in list(graph.nodes):
        if not _is_scaling(node) or any(_is_scaling(user) for user in node.users):
            continue
        chain, factor = [node], float(node.args[1])
        while _is_scaling(chain[-1].args[0]) and len(chain[-1].args[0].users) == 1:
            chain.append(chain[-1].args[0])
            factor *= float(chain[-1].args[1])
        if len(chain) == 1 or not SMALLEST < abs(factor) < LARGEST or float(np.float16(factor)) == factor:
            continue
        x = chain[-1].args[0]
        with graph.inserting_before(node):
            halves = [_like(node, torch.ops.aten.mul.Tensor, (x, half)) for half in halves_of(factor)]
            joined = _like(node, torch.ops.aten.add.Tensor, tuple(halves))
        node.replace_all_uses_with(joined)
        for each in chain:
            graph.erase_node(each)


def halves_of(factor: float) -> tuple[float, float]:
    """The two float16 numbers whose sum is nearest to the factor. Both are normal: what is smaller becomes zero."""
    near = np.float16(factor).view(np.uint16) + np.arange(-NEIGHBOURS, NEIGHBOURS + 1)
    high = near.astype(np.uint16).view(np.float16).astype(np.float64)
    low = (factor - high).astype(np.float16).astype(np.float64)
    error = np.where(np.abs(low) < NORMAL, np.inf, np.abs(high + low - factor))
    best = int(error.argmin())
    return float(high[best]), float(low[best])


def _is_scaling(node: Any) -> bool:
    return isinstance(node, Node) and node.target in PRODUCTS and isinstance(node.args[1], float)


def _like(node: Node, target: Any, args: tuple[Any, ...]) -> Node:
    made = node.graph.call_function(target, args)
    made.meta = dict(node.meta)
    return made
