"""What carries rows of a buffer into the states that stand before them: one fragment a kind, for all of its layers."""

from collections.abc import Sequence

from torch import Tensor

from coreai_recipes.decoder.front import Front
from coreai_recipes.decoder.states import CarriedSpec, RowsSpec
from coreai_recipes.export.fragments import FLOAT, INTEGER, Fragment, Port
from coreai_recipes.export.pieces import Piece
from coreai_recipes.primitives.attention import commit_kind
from coreai_recipes.primitives.buffer import Buffer, since_commit
from coreai_recipes.primitives.carried import Carried
from coreai_recipes.primitives.layer_inputs import LayerInputs


def commit_fragment(front: Front, buffer: RowsSpec, carried: Sequence[CarriedSpec]) -> Fragment:
    """What the layers of a kind carry at `base`, and their rows -> what they carry at `position`."""
    inputs = {name: Port(INTEGER, (1,)) for name in ("base", "position")}
    inputs |= {spec.tensor.name: Port(FLOAT, spec.shape) for spec in carried} | {"rows": Port(FLOAT, buffer.shape)}
    outputs = {f"new_{spec.tensor.name}": Port(FLOAT, spec.shape) for spec in carried}
    name = f"commit_{buffer.kind}_{buffer.layers}"
    return Fragment(name, _CommitPiece(front, buffer, carried), inputs, outputs, {})


class _CommitPiece(Piece):
    def __init__(self, front: Front, buffer: RowsSpec, carried: Sequence[CarriedSpec]) -> None:
        super().__init__(front)
        self.kind, self.rows, self.parts = buffer.kind, buffer.rows, dict(buffer.parts)
        self.names = [spec.tensor.name for spec in carried]

    def forward(self, base: Tensor, position: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        front: Front = self.piece[0]  # type: ignore[assignment]
        *given, rows = tensors
        carried = Carried(dict(zip(self.names, given, strict=True)), buffer=Buffer(rows, self.parts))
        since = since_commit(self.rows, front.tail(self.kind), base, position)
        commit_kind(front.kinds[self.kind], carried, LayerInputs(**since))
        return tuple(carried.left[name] for name in self.names)
