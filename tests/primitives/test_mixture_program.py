"""Mixtures in place of an MLP as coremltools converts them, their weights being inputs, evaluated and counted."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from figures import psnr
from mixture_families import HIDDEN, MIXTURES, hidden_state
from test_experts_program import alias, inputs_of
from torch import Tensor, nn

from coreai_recipes.evaluate import Program
from coreai_recipes.export.fragments import FLOAT, Fragment, Port, parameters_as
from coreai_recipes.primitives.experts import one_hot
from coreai_recipes.targets.coreml.convert import convert_fragment
from coreai_recipes.targets.coreml.mlpackage import write_model

FORMS = [(name, tokens) for name in ("qwen2_moe", "dots1, groups", "gpt_oss") for tokens in (1, 9)]


class Piece(nn.Module):
    """A mixture, given its parameters at each call."""

    def __init__(self, module: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.piece, self.names = (module,), names

    def forward(self, x: Tensor, *weights: Tensor) -> Tensor:
        with parameters_as(self.piece[0], dict(zip(self.names, weights, strict=True))):
            return self.piece[0](x)  # type: ignore[no-any-return]


def write_program(module: nn.Module, tokens: int, package: Path) -> Path:
    names = [name for name, _ in module.named_parameters()]
    x = Port(FLOAT, (1, HIDDEN, 1, tokens))
    inputs = {"x": x} | {alias(name): Port(FLOAT, tuple(module.get_parameter(name).shape)) for name in names}
    parameters = {alias(name): name for name in names}
    data = convert_fragment(Fragment("mixture", Piece(module, names), inputs, {"y": x}, parameters))
    write_model(data, package)
    return package


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], Path]:
    """The package of a mixture for so many tokens, converted at the first request."""
    made: dict[tuple[str, int], Path] = {}

    def program(name: str, tokens: int) -> Path:
        if (name, tokens) not in made:
            module = MIXTURES[name].ours(MIXTURES[name].block())
            package = tmp_path_factory.mktemp("mixture") / "mixture.mlpackage"
            made[name, tokens] = write_program(module, tokens, package)
        return made[name, tokens]

    return program


@pytest.mark.parametrize(("name", "tokens"), FORMS)
def test_the_program_equals_the_module(name: str, tokens: int, programs: Callable[[str, int], Path]) -> None:
    function = Program(programs(name, tokens)).function()
    for _ in range(3):
        module = MIXTURES[name].ours(MIXTURES[name].block())
        x = hidden_state(tokens).transpose(1, 2).unsqueeze(2)
        assert psnr(module(x), function(inputs_of(module, x))["y"]) >= 90


@pytest.mark.parametrize(("name", "tokens"), FORMS)
def test_no_tensor_is_above_rank_4_and_none_is_float32(
    name: str, tokens: int, programs: Callable[[str, int], Path]
) -> None:
    types = Program(programs(name, tokens)).function()._graph.types
    assert max(len(kind.shape) for kind in types.values()) <= 4
    assert {kind.element_type for kind in types.values()} <= {"float16", "uint16", "bool"}


@pytest.mark.parametrize(("name", "tokens"), FORMS)
def test_experts_are_chosen_and_read_as_often_as_that_takes(
    name: str, tokens: int, programs: Callable[[str, int], Path]
) -> None:
    counts = Program(programs(name, tokens)).function().operation_counts()
    groups = name == "dots1, groups"
    assert counts["topk"] == (3 if groups else 1)
    assert counts["matmul"] == 2
    weights = 4 if name == "gpt_oss" else 2  # with biases
    assert counts.get("gather", 0) == (weights if tokens == 1 else 0)
    assert "gather_along_axis" not in counts  # of what the call computes: it would leave the engine
    assert counts.get("greater_equal", 0) == 0  # coremltools' guard for negative numbers of experts: there are none


class Marks(nn.Module):
    """Which experts are the best two of x (1, E, 1, 1)."""

    def forward(self, x: Tensor) -> Tensor:
        return one_hot(torch.topk(x, 2, dim=1)[1], x.shape[1], x.dtype).squeeze(3)


@pytest.mark.parametrize("count", [2048, 2050])
def test_an_expert_is_never_taken_for_its_neighbour(count: int, tmp_path: Path) -> None:
    """float16 holds every whole number up to 2,048, and every second one beyond."""
    x, marks = Port(FLOAT, (1, count, 1, 1)), Port(FLOAT, (count, 2, 1))
    model = convert_fragment(Fragment("marks", Marks(), {"x": x}, {"marks": marks}, {}))
    write_model(model, tmp_path / "p")
    logits = torch.zeros(1, count, 1, 1)
    logits[0, -2:] = torch.tensor([2.0, 1.0]).view(2, 1, 1)
    found = Program(tmp_path / "p", precision="rounded").function()({"x": logits})["marks"]
    assert found.nonzero().tolist() == [[count - 2, 0, 0], [count - 1, 1, 0]]
