"""What an adapter adds to each matrix of a stack, as two smaller ones in its order and with its rows and factor."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from coreai_recipes.errors import CheckpointError
from coreai_recipes.weights.rewrite import Rewrite

if TYPE_CHECKING:
    from torch import Tensor

    from coreai_recipes.checkpoint.adapted import AdaptedCheckpoint
    from coreai_recipes.weights.binding import Binding


@dataclass(frozen=True)
class LowRankBinding:
    """The product that an adapter adds to a matrix of ours, which is `binding`'s of the checkpoint's tensor."""

    adapted: AdaptedCheckpoint
    binding: Binding

    @property
    def rank(self) -> int:
        return self.adapted.rank(self.binding.tensor)

    def read(self) -> tuple[Tensor, Tensor]:
        """A (rank, in) and B (out, rank) with the adapter's scale, float32."""
        import torch

        a, b = self.adapted.factors(self.binding.tensor)
        if self.binding.runs:
            b = torch.cat([b[run.start : run.stop] for run in self.binding.runs])
        elif self.binding.rows is not None:
            b = b[self.binding.rows.start : self.binding.rows.stop]
        rewrite = self.binding.rewrite
        columns = Rewrite(row_order=rewrite.column_order)
        return columns.apply(a.t()).t(), Rewrite(factor=rewrite.factor, row_order=rewrite.row_order).apply(b)


def bind_low_rank(
    bindings: Mapping[str, Binding], adapted: AdaptedCheckpoint, matrices: Collection[str]
) -> dict[str, LowRankBinding]:
    """By matrix of ours (`layers.0.attention.q`), what the adapter of `adapted` adds to it. `bindings` are those of its
    base, and only `matrices` can have such a product.

    Raises CheckpointError with everything that can only be merged, or that is no part of the model.
    """
    found: dict[str, LowRankBinding] = {}
    problems: list[str] = []
    unlike: dict[str, list[str]] = {}  # matrices by what their products are
    used: set[str] = set()
    for name, binding in bindings.items():
        matrix, changed = name.removesuffix(".weight"), binding.tensors & adapted.changed
        used |= changed
        if not changed:
            continue
        is_plain = len(binding.tensors) == 1 and not (binding.alternate or binding.stack or binding.is_squeezed)
        if matrix not in matrices or not is_plain:
            problems.append(f"{matrix} is no plain matrix of a layer: an adapter of it is merged, not handed in")
        elif why := adapted.why_no_factors(binding.tensor):
            unlike.setdefault(why, []).append(matrix)
        else:
            found[matrix] = LowRankBinding(adapted, binding)
    problems += [
        f"{names[0]}{f' and {len(names) - 1} others' * (len(names) > 1)}: {why}" for why, names in unlike.items()
    ]
    problems += [f"{name} fills nothing of the recipe" for name in sorted(adapted.changed - used)]
    (adapter, _), *_ = adapted.adapters
    CheckpointError.collect(f"{adapter.place}: {problem}" for problem in problems[:20])
    return found
