"""What cannot be converted to Core AI is said in a sentence."""

import pytest
import torch

from coreai_recipes.errors import UserError
from coreai_recipes.export.fragments import Fragment, Port
from coreai_recipes.targets.coreai.convert import convert_fragment


class Eigenvalues(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.linalg.eig(x.float())[0].abs().half()


def test_an_operation_that_core_ai_has_not_is_named_with_its_part() -> None:
    port = Port("float16", (1, 1, 4, 4))
    with pytest.raises(UserError) as raised:
        convert_fragment(Fragment("decode_full", Eigenvalues(), {"x": port}, {"y": Port("float16", (1, 1, 4))}, {}))
    assert str(raised.value) == (
        "export.format: decode_full is not converted to Core AI: ValueError: The exported program contains unsupported "
        "ATen ops: aten.linalg_eig.default. Use register_torch_lowering() to provide a custom lowering for these ops.: "
        "leave out export.format, for Core ML's package, and please report it"
    )
