"""The three precisions, and how an overflow is found."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from coremltools.converters.mil.mil import Builder as mb
from mil_programs import write_package

from coreai_recipes.evaluate import EvaluationError, Function, Program

HALF = {"x": ("float16", (1, 256))}


def functions(tmp_path: Path, build: Any, inputs: Any = None) -> dict[str, Function]:
    path = write_package(tmp_path / "precision.mlpackage", build, inputs or HALF)
    return {precision: Program(path, precision).function() for precision in ("float32", "rounded", "strict")}  # type: ignore[arg-type]


def result(function: Function, x: torch.Tensor) -> torch.Tensor:
    return next(iter(function({"x": x}).values()))


def test_float32_does_not_round_and_rounded_does(tmp_path: Path) -> None:
    prepared = functions(tmp_path, lambda x: mb.mul(x=x, y=x))
    x = torch.linspace(1, 2, 256)[None].half().float()
    assert torch.equal(result(prepared["float32"], x), x * x)
    for precision in ("rounded", "strict"):
        assert torch.equal(result(prepared[precision], x), (x * x).half().float())


def test_a_float16_input_is_rounded_on_its_way_in(tmp_path: Path) -> None:
    prepared = functions(tmp_path, lambda x: mb.identity(x=x))
    x = torch.full((1, 256), 0.1)
    assert torch.equal(result(prepared["float32"], x), x)
    assert torch.equal(result(prepared["rounded"], x), x.half().float())


def test_a_value_that_the_program_declares_float32_is_not_rounded(tmp_path: Path) -> None:
    prepared = functions(tmp_path, lambda x: mb.exp(x=mb.cast(x=x, dtype="fp32")))
    x = torch.ones(1, 256)
    assert torch.equal(result(prepared["strict"], x), torch.exp(x))


def test_a_square_beyond_65504_is_reported_where_it_happens(tmp_path: Path) -> None:
    prepared = functions(
        tmp_path, lambda x: mb.sqrt(x=mb.mul(x=mb.mul(x=x, y=x, name="squared"), y=np.float16(1)), name="root")
    )
    x = torch.full((1, 256), 300.0)
    assert result(prepared["float32"], x).max() == 300
    assert prepared["float32"].overflowed == []
    for precision in ("rounded", "strict"):
        assert result(prepared[precision], x).isinf().all()
        assert prepared[precision].overflowed == ["squared"]
        result(prepared[precision], x / 10)
        assert prepared[precision].overflowed == []


def test_an_infinite_mask_is_no_overflow(tmp_path: Path) -> None:
    mask = np.where(np.arange(256) < 100, 0, -np.inf).astype(np.float16)[None]
    prepared = functions(tmp_path, lambda x: mb.softmax(x=mb.add(x=x, y=mask), axis=-1))
    for function in prepared.values():
        assert result(function, torch.zeros(1, 256))[0, :100].sum() == pytest.approx(1, abs=2e-3)
        assert function.overflowed == []


@pytest.mark.parametrize(
    "build",
    [
        lambda x: mb.layer_norm(x=x, axes=[-1], epsilon=np.float16(1e-5), name="norm"),
        lambda x: mb.reduce_l2_norm(x=x, axes=[-1], name="norm"),
        lambda x: mb.l2_norm(x=mb.reshape(x=x, shape=[1, 1, 256]), epsilon=np.float16(1e-5), name="norm"),
    ],
    ids=["layer_norm", "reduce_l2_norm", "l2_norm"],
)
def test_only_strict_sees_the_squares_inside_a_norm_overflow(tmp_path: Path, build: Any) -> None:
    prepared = functions(tmp_path, build)
    x = torch.linspace(-3000, 3000, 256)[None]
    for precision, overflowed in {"float32": [], "rounded": [], "strict": ["norm"]}.items():
        result(prepared[precision], x)
        assert prepared[precision].overflowed == overflowed


def test_strict_rounds_a_matrix_product_every_64_channels(tmp_path: Path) -> None:
    weight = np.linspace(-1, 1, 256 * 3).reshape(3, 256).astype(np.float16)
    x = torch.sin(torch.arange(256.0))[None].half().float()
    expected = torch.zeros(1, 3)
    for first in range(0, 256, 64):
        part = x[:, first : first + 64] @ torch.from_numpy(weight).float()[:, first : first + 64].T
        expected = (expected + part.half().float()).half().float()

    def build(x: Any) -> Any:
        column = mb.reshape(x=x, shape=[1, 256, 1, 1])
        return [
            mb.linear(x=x, weight=weight),
            mb.matmul(x=x, y=weight, transpose_y=True),
            mb.reshape(x=mb.conv(x=column, weight=weight[..., None, None]), shape=[1, 3]),
            mb.reshape(
                x=mb.einsum(values=(mb.reshape(x=x, shape=[1, 1, 256]), weight.T[:, None]), equation="chw,whr->chr"),
                shape=[1, 3],
            ),
        ]

    prepared = functions(tmp_path, build)
    for value in prepared["strict"]({"x": x}).values():
        assert torch.equal(value, expected)
    exact = x @ torch.from_numpy(weight).float().T
    for value in prepared["rounded"]({"x": x}).values():
        torch.testing.assert_close(value, exact.half().float(), rtol=1e-3, atol=1e-4)
    assert not torch.equal(expected, exact.half().float())


def test_a_product_of_halves_with_a_vector_is_summed_in_float32(tmp_path: Path) -> None:
    weight = np.full((3, 1536, 1, 1), 1 + 2**-10, np.float16)
    prepared = functions(tmp_path, lambda x: mb.conv(x=x, weight=weight), {"x": ("float16", (1, 1536, 1, 1))})
    x = torch.ones(1, 1536, 1, 1)
    assert result(prepared["float32"], x).unique().item() == 1537.5
    assert result(prepared["rounded"], x).unique().item() == 1538  # a sum in float16 would go by halves from 2 on


def test_strict_rounds_every_64_channels_also_where_they_are_no_whole_blocks(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(1)
    weight, x = (torch.randn(shape, generator=generator).half() for shape in ((5, 200), (200,)))
    expected, total = torch.zeros(5).half(), torch.zeros(1).half()
    for first in range(0, 200, 64):
        part = weight[:, first : first + 64].float() @ x[first : first + 64].float()
        expected, total = expected + part.half(), total + x[first : first + 64].float().sum().half()
    prepared = functions(
        tmp_path,
        lambda x: [mb.conv(x=x, weight=weight.numpy()[..., None, None]), mb.reduce_sum(x=x, axes=[1])],
        {"x": ("float16", (1, 200, 1, 1))},
    )
    product, summed = prepared["strict"]({"x": x.float().view(1, 200, 1, 1)}).values()
    assert torch.equal(product.flatten(), expected.float())
    assert torch.equal(summed.flatten(), total.float())


def test_a_sum_that_float16_cannot_hold_overflows_in_strict_though_its_mean_would_fit(tmp_path: Path) -> None:
    prepared = functions(tmp_path, lambda x: mb.reduce_mean(x=x, axes=[-1], name="mean"))
    x = torch.full((1, 256), 1000.0)
    assert result(prepared["rounded"], x) == 1000
    result(prepared["strict"], x)
    assert prepared["strict"].overflowed == ["mean"]


def test_strict_stays_close_where_nothing_overflows(tmp_path: Path) -> None:
    def build(x: Any) -> Any:
        heads = mb.reshape(x=x, shape=[1, 4, 8, 8])
        return [
            mb.layer_norm(x=x, axes=[-1], epsilon=np.float16(1e-3)),
            mb.softmax(x=x, axis=-1),
            mb.reduce_log_sum_exp(x=x, axes=[-1]),
            mb.cumsum(x=x, axis=1),
            mb.reduce_prod(x=mb.reshape(x=x, shape=[32, 8]), axes=[-1]),
            mb.instance_norm(x=heads, epsilon=np.float16(1e-3)),
            mb.batch_norm(x=heads, mean=np.zeros(4, np.float16), variance=np.ones(4, np.float16)),
            mb.scaled_dot_product_attention(query=heads, key=heads, value=heads),
            mb.rsqrt(x=mb.add(x=x, y=np.float16(3)), epsilon=np.float16(1e-3)),
        ]

    prepared = functions(tmp_path, build)
    x = torch.sin(torch.arange(256.0))[None]
    theirs = prepared["float32"]({"x": x})
    for precision in ("rounded", "strict"):
        for name, value in prepared[precision]({"x": x}).items():
            torch.testing.assert_close(value, theirs[name], rtol=2e-2, atol=8e-3)
        assert prepared[precision].overflowed == []


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(EvaluationError, match="precision half is not one of float32, rounded, strict"):
        Program("nowhere.mlpackage", "half")  # type: ignore[arg-type]
