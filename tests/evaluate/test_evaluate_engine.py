"""Precision `engine`: each habit is there, is gone when it is left out, and leaves alone what it does not concern."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as functional
from coremltools.converters.mil.mil import Builder as mb
from mil_programs import write_package
from torch import Tensor

from coreai_recipes.evaluate import EvaluationError, Function, Program
from coreai_recipes.evaluate.habits import HABITS

ROW = {"x": ("float16", (1, 64))}


def engine(tmp_path: Path, build: Any, inputs: Any = None, without: tuple[str, ...] = ()) -> Function:
    path = tmp_path / "engine.mlpackage"
    if not path.exists():
        write_package(path, build, inputs or ROW)
    return Program(path, "engine", without=without).function()


def first(function: Function, x: Tensor) -> Tensor:
    return next(iter(function({"x": x}).values()))


def row(*values: float) -> Tensor:
    return torch.tensor([[*values, *[0.0] * (64 - len(values))]])


IDENTITY = np.eye(64, dtype=np.float16)
PRODUCTS = {
    "matmul": lambda x: mb.matmul(x=x, y=IDENTITY),
    "linear": lambda x: mb.linear(x=x, weight=IDENTITY),
    "conv": lambda x: mb.conv(x=mb.reshape(x=x, shape=[1, 64, 1, 1]), weight=IDENTITY[..., None, None]),
    "einsum": lambda x: mb.einsum(
        values=(mb.reshape(x=x, shape=[1, 1, 64]), IDENTITY[:, None]), equation="chw,whr->chr"
    ),
    "attention": lambda x: mb.scaled_dot_product_attention(
        query=np.zeros((1, 1, 1, 8), np.float16),
        key=np.zeros((1, 1, 1, 8), np.float16),
        value=mb.reshape(x=x, shape=[1, 1, 1, 64]),
    ),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_a_product_at_32768_is_infinite_and_the_float16_below_it_is_not(tmp_path: Path, name: str) -> None:
    x, function = row(32752, 32768, -40000, 100), engine(tmp_path, PRODUCTS[name])
    assert first(function, x).flatten()[:4].tolist() == [32752, torch.inf, -torch.inf, 100]
    assert len(function.overflowed) == 1
    without = engine(tmp_path, PRODUCTS[name], without=("mac-32768",))
    assert first(without, x).flatten()[:4].tolist() == [32752, 32768, -40000, 100]
    assert without.overflowed == []


def test_a_sum_of_a_reduction_and_an_elementwise_product_keep_float16s_whole_range(tmp_path: Path) -> None:
    function = engine(tmp_path, lambda x: [mb.reduce_sum(x=x, axes=[-1]), mb.mul(x=x, y=np.float16(1))])
    summed, multiplied = function({"x": row(40000, 20000)}).values()
    assert (summed.item(), multiplied[0, 0].item()) == (60000, 40000)


def test_a_convolution_that_adds_nothing_up_keeps_it_too(tmp_path: Path) -> None:
    function = engine(
        tmp_path,
        lambda x: mb.conv(x=mb.reshape(x=x, shape=[1, 1, 1, 64]), weight=np.ones((1, 1, 1, 1), np.float16)),
    )
    assert first(function, row(60000)).max() == 60000


def test_beyond_16384_a_divisor_gives_zero(tmp_path: Path) -> None:
    inputs = {"x": ("float16", (1, 64)), "y": ("float16", (1, 64))}
    given = {"x": torch.full((1, 64), 8192.0), "y": row(2, 16384, 16400) + torch.tensor([0, 0, 0, *[1] * 61])}

    def divided(without: tuple[str, ...] = ()) -> list[float]:
        function = engine(tmp_path, lambda x, y: mb.real_div(x=x, y=y), inputs, without)
        (value,) = function(given).values()
        return value[0, :3].tolist()  # type: ignore[no-any-return]

    assert divided() == [4096, 0.5, 0]
    assert divided(("div-sub",)) == [4096, 0.5, pytest.approx(0.4995, abs=1e-4)]


def test_a_constant_divisor_is_flushed_too_and_so_is_an_inverse(tmp_path: Path) -> None:
    def build(x: Any) -> Any:
        return [mb.real_div(x=x, y=np.float16(20000)), mb.inverse(x=x, epsilon=np.float16(1e-4))]

    assert [value[0, 0].item() for value in engine(tmp_path, build)({"x": row(20000)}).values()] == [0, 0]
    left_out = engine(tmp_path, build, without=("div-sub",))
    assert all(value[0, 0] > 0 for value in left_out({"x": row(20000)}).values())


def test_the_root_of_a_subnormal_is_that_of_zero(tmp_path: Path) -> None:
    def build(x: Any) -> Any:
        return mb.rsqrt(x=x, epsilon=np.float16(0))

    x = torch.full((1, 64), 2.0**-14)
    x[0, 1] = 2.0**-15
    function = engine(tmp_path, build)
    assert first(function, x)[0, :2].tolist() == [128, torch.inf]
    assert len(function.overflowed) == 1
    assert first(engine(tmp_path, build, without=("rsqrt-0",)), x).isfinite().all()


def test_nan_is_infinite_and_the_difference_of_infinities_is_zero(tmp_path: Path) -> None:
    def build(x: Any) -> Any:
        infinite = mb.mul(x=x, y=np.float16(60000))
        nothing = mb.mul(x=x, y=np.float16(0))
        return [mb.mul(x=infinite, y=nothing, name="product"), mb.sub(x=infinite, y=infinite, name="difference")]

    function = engine(tmp_path, build)
    product, difference = function({"x": row(4)}).values()
    assert (product[0, 0].item(), difference[0, 0].item()) == (torch.inf, 0)
    assert function.nans == ["product", "difference"]
    left_out = engine(tmp_path, build, without=("nan-logic",))
    assert all(value[0, 0].isnan() for value in left_out({"x": row(4)}).values())
    function({"x": row(0.5)})
    assert function.nans == []


ACTIVATIONS = {
    "gelu": (lambda x: mb.gelu(x=x, mode="EXACT"), functional.gelu, -0.000543),
    "gelu_tanh": (
        lambda x: mb.gelu(x=x, mode="TANH_APPROXIMATION"),
        lambda x: functional.gelu(x, approximate="tanh"),
        -0.000543,
    ),
    "silu": (lambda x: mb.silu(x=x), functional.silu, -0.001259),
    "sigmoid": (lambda x: mb.sigmoid(x=x), torch.sigmoid, 0.5),
    "tanh": (lambda x: mb.tanh(x=x), torch.tanh, 0.0),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_is_linear_between_33_knots(tmp_path: Path, name: str) -> None:
    build, exact, at_zero = ACTIVATIONS[name]
    inputs = {"x": ("float16", (1, 128))}
    x = torch.linspace(-16, 15.75, 128)[None]  # every knot, and what lies between and beyond them
    function = engine(tmp_path, build, inputs)
    found, wanted = first(function, x), exact(x)
    assert found[0, 64].item() == pytest.approx(at_zero, abs=1e-6)
    assert (found - wanted).abs().max() < 0.03
    inner = found[0, 32:97]
    between = (inner[0:-2:2] + inner[2::2]) / 2
    torch.testing.assert_close(inner[1::2], between, atol=4e-3, rtol=0)
    assert (inner[1::2] - wanted[0, 33:96:2]).abs().max() > 1e-3
    ends = torch.tensor([[-torch.inf, torch.inf]]).expand(64, 2).reshape(1, 128)
    assert first(function, ends)[0, :2].tolist() == exact(torch.tensor([-1e9, 1e9])).half().tolist()
    torch.testing.assert_close(
        first(engine(tmp_path, build, inputs, ("act-lut",)), x), wanted.half().float(), atol=1e-6, rtol=1e-3
    )


@pytest.mark.parametrize(
    "build",
    [
        lambda x: mb.slice_by_index(x=x, begin=[0, 1], end=[1, 4]),
        lambda x: mb.slice_by_size(x=x, begin=[0, 1], size=[1, 3]),
        lambda x: mb.split(x=x, split_sizes=[1, 3, 60], axis=-1)[1],
    ],
    ids=["slice_by_index", "slice_by_size", "split"],
)
def test_a_slice_with_an_offset_on_the_last_axis_loses_what_is_beyond_4094(tmp_path: Path, build: Any) -> None:
    function = engine(tmp_path, build)
    assert first(function, row(0, 4094, 4096, -5000))[0].tolist() == [4094, torch.inf, -torch.inf]
    assert len(function.overflowed) == 1
    left_out = engine(tmp_path, build, without=("slice-w4094",))
    assert first(left_out, row(0, 4094, 4096, -5000))[0].tolist() == [4094, 4096, -5000]


def test_a_slice_without_an_offset_or_on_another_axis_loses_nothing(tmp_path: Path) -> None:
    def build(x: Any) -> Any:
        column = mb.reshape(x=x, shape=[64, 1])
        return [
            mb.slice_by_index(x=x, begin=[0, 0], end=[1, 4]),
            mb.slice_by_index(x=x, begin=[0, 9], end=[1, 4], begin_mask=[False, True]),
            mb.reshape(x=mb.slice_by_index(x=column, begin=[0, 0], end=[4, 1]), shape=[1, 4]),
            mb.split(x=x, split_sizes=[4, 60], axis=-1)[0],
        ]

    for value in engine(tmp_path, build)({"x": row(0, 5000, 6000)}).values():
        assert value[0, :3].tolist() == [0, 5000, 6000]


def test_sums_are_wide_unless_that_is_left_out(tmp_path: Path) -> None:
    inputs = {"x": ("float16", (1, 256))}

    def build(x: Any) -> Any:
        return mb.linear(x=x, weight=np.ones((1, 256), np.float16))

    x = torch.cat((torch.full((1, 64), 64.0), torch.ones(1, 192)), 1)
    assert first(engine(tmp_path, build, inputs), x).item() == torch.tensor(64 * 64 + 192.0).half()
    x = torch.cat((torch.full((1, 64), 64.0), torch.full((1, 192), 1 / 64)), 1)
    assert first(engine(tmp_path, build, inputs), x).item() == torch.tensor(64 * 64 + 3.0).half()
    assert first(engine(tmp_path, build, inputs, ("wide-sum",)), x).item() == 4096


def test_a_habit_that_there_is_not_cannot_be_left_out(tmp_path: Path) -> None:
    path = write_package(tmp_path / "engine.mlpackage", lambda x: mb.identity(x=x), ROW)
    with pytest.raises(EvaluationError, match=r"^there is no habit 'div': the habits are mac-32768, div-sub, "):
        Program(path, "engine", without=["div"])
    with pytest.raises(EvaluationError, match="precision strict has no habits: div-sub can be left out of `engine`"):
        Program(path, "strict", without=["div-sub"])


def test_every_habit_has_a_source_and_says_how_sure_it_is() -> None:
    assert all(habit.source and habit.confidence and habit.chips for habit in HABITS.values())
