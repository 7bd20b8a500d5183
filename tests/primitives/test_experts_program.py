"""The mixture of experts as coremltools converts it, its weights being inputs, evaluated and counted."""

import warnings
from collections.abc import Callable
from pathlib import Path

import coremltools as ct
import pytest
import torch
from figures import psnr
from test_experts import EXPERTS, HIDDEN, TOP, WIDTH, hidden_state, of_layer, their_layer
from torch import Tensor, nn

from coreai_recipes.evaluate import Program
from coreai_recipes.evaluate.cost import Cost, function_costs
from coreai_recipes.export.fragments import FLOAT, WEIGHT_PREFIX, Fragment, Port, parameters_as
from coreai_recipes.primitives.experts import Experts
from coreai_recipes.targets.coreml.convert import convert_fragment
from coreai_recipes.targets.coreml.mlpackage import write_model

pytestmark = pytest.mark.xdist_group(__name__)

FORMS = {"gathered": ("gathered", 1), "all, one token": ("all", 1), "all, nine tokens": ("gathered", 9)}


class Piece(nn.Module):
    """The experts, given their parameters at each call."""

    def __init__(self, module: Experts, names: list[str]) -> None:
        super().__init__()
        self.piece, self.names = (module,), names

    def forward(self, x: Tensor, *weights: Tensor) -> Tensor:
        with parameters_as(self.piece[0], dict(zip(self.names, weights, strict=True))):
            return self.piece[0](x)  # type: ignore[no-any-return]


def alias(name: str) -> str:
    return WEIGHT_PREFIX + name.replace(".", "_")


def write_program(module: Experts, tokens: int, package: Path) -> Path:
    names = [name for name, _ in module.named_parameters()]
    x = Port(FLOAT, (1, HIDDEN, 1, tokens))
    inputs = {"x": x} | {alias(name): Port(FLOAT, tuple(module.get_parameter(name).shape)) for name in names}
    parameters = {alias(name): name for name in names}
    data = convert_fragment(Fragment("experts", Piece(module, names), inputs, {"y": x}, parameters))
    write_model(data, package)
    return package


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The package of a form, converted at the first request; weights have no part in it."""
    made: dict[str, Path] = {}

    def program(form: str) -> Path:
        if form not in made:
            decode, tokens = FORMS[form]
            package = tmp_path_factory.mktemp("experts") / "experts.mlpackage"
            made[form] = write_program(of_layer(their_layer(), decode=decode), tokens, package)
        return made[form]

    return program


def inputs_of(module: Experts, x: Tensor) -> dict[str, Tensor]:
    return {"x": x} | {alias(name): parameter for name, parameter in module.named_parameters()}


@pytest.mark.parametrize("form", FORMS)
def test_the_program_equals_the_module(form: str, programs: Callable[[str], Path]) -> None:
    decode, tokens = FORMS[form]
    function = Program(programs(form)).function()
    for _ in range(3):
        module = of_layer(their_layer(), decode=decode)
        x = hidden_state(tokens).transpose(1, 2).unsqueeze(2)
        assert psnr(module(x), function(inputs_of(module, x))["y"]) >= 90


@pytest.mark.parametrize("form", FORMS)
def test_the_program_in_float16_stays_near_and_finite(form: str, programs: Callable[[str], Path]) -> None:
    decode, tokens = FORMS[form]
    function = Program(programs(form), precision="strict").function()
    module = of_layer(their_layer(), decode=decode)
    for parameter in module.parameters():
        parameter.copy_(parameter.half().float())
    x = (2000 * hidden_state(tokens)).half().float().transpose(1, 2).unsqueeze(2)
    assert psnr(module(x), function(inputs_of(module, x))["y"]) >= 45
    assert function.overflowed == []


@pytest.mark.parametrize("form", FORMS)
def test_the_program_has_the_operations_that_it_needs_and_no_tensor_above_rank_4(
    form: str, programs: Callable[[str], Path]
) -> None:
    function = Program(programs(form)).function()
    counts = function.operation_counts()
    # what both norms that read the stream have in common is computed once, and none of it is in float32
    norms_and_router = {"rsqrt": 2, "reduce_mean": 2, "reduce_max": 2, "conv": 1, "topk": 1, "softmax": 1}
    experts = {"matmul": 2, "split": 1, "gelu": 1, "reduce_sum": 1 if form == "gathered" else 2}
    chosen = {"gather": 3} if form == "gathered" else {"equal": 1, "cast": 2}
    expected = norms_and_router | experts | chosen
    absent = ("gather", "cast", "greater_equal", "select", "transpose", "concat", "tile")
    assert {name: counts.get(name, 0) for name in (*expected, *absent)} == {
        **dict.fromkeys(absent, 0),
        **expected,
    }
    types = function._graph.types
    assert max(len(kind.shape) for kind in types.values()) == 4
    assert {kind.element_type for kind in types.values()} <= {"float16", "uint16", "bool"}


# --- what they cost ---------------------------------------------------------------------------------------------------


def cost_with_stored_weights(form: str, path: Path) -> Cost:
    """The cost of a form whose weights are constants of the program, as in a package."""
    decode, tokens = FORMS[form]
    module = of_layer(their_layer(), decode=decode).eval()
    model = ct.convert(
        torch.jit.trace(module, torch.zeros(1, HIDDEN, 1, tokens), check_trace=False),
        convert_to="mlprogram",
        inputs=[ct.TensorType(name="x", shape=(1, HIDDEN, 1, tokens))],
        minimum_deployment_target=ct.target.iOS18,
        skip_model_load=True,
    )
    model.save(str(path))
    return function_costs(path)["main"]


@pytest.fixture(scope="module")
def costs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Cost]:
    folder = tmp_path_factory.mktemp("costs")
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        return {form: cost_with_stored_weights(form, folder / f"{form}.mlpackage") for form in FORMS}


def test_one_token_gathered_reads_the_weights_of_its_experts_alone(costs: dict[str, Cost]) -> None:
    expert = 3 * WIDTH * HIDDEN + 1  # gate, up, down and the scale
    around = 3 * HIDDEN + EXPERTS * HIDDEN  # two norms, the router's scale and its projection
    numbers = 2 * EXPERTS  # 0, 1, 2 ... with which the chosen ones are compared
    assert costs["gathered"].weight_bytes == 2 * (around + TOP * expert)
    assert costs["all, one token"].weight_bytes == 2 * (around + EXPERTS * expert) + numbers
    assert costs["all, nine tokens"].weight_bytes == costs["all, one token"].weight_bytes


def test_one_token_gathered_computes_its_experts_alone(costs: dict[str, Cost]) -> None:
    expert = 2 * 3 * WIDTH * HIDDEN
    assert 1 < costs["gathered"].flops / (TOP * expert) < 1.2
    assert 1 < costs["all, one token"].flops / (EXPERTS * expert) < 1.1
    assert 1 < costs["all, nine tokens"].flops / (9 * EXPERTS * expert) < 1.1
