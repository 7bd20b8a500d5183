"""What Core AI's runtime on Linux does with float16, as `verification.half_sums` says it, held against the runtime."""

import platform

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from coreai_recipes.running.coreai import CoreAIProgram
from coreai_recipes.targets.coreai.convert import exported, new_converter, quietly
from coreai_recipes.verification.half_sums import multiply

pytestmark = pytest.mark.skipif(platform.system() == "Darwin", reason="a Mac's runtime has kernels of its own")


class Computing(nn.Module):
    """Products and sums that are long enough for the order of their sums to show."""

    def forward(self, a: Tensor, b: Tensor, wide: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        return (
            torch.matmul(a, b),
            torch.matmul(a[:, :, :1], b),
            torch.matmul(b.transpose(2, 3), a.transpose(2, 3)),
            torch.matmul(weight[:, :, 0, 0], wide[0, :, 0]),
            F.conv2d(wide, weight),
            wide.sum(1),
            wide.mean(1),
            torch.softmax(wide, 1),
        )


NAMES = ("products", "of_one", "swapped", "flat", "convolution", "sum", "mean", "softmax")


@pytest.fixture(scope="module")
def given() -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((1, 2, 5, 293), (1, 2, 293, 33), (1, 301, 1, 3), (40, 301, 1, 1))
    return tuple(torch.randn(shape, generator=generator).half() for shape in shapes)


@pytest.fixture(scope="module")
def computed(given: tuple[Tensor, ...], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """By the runtime."""
    inputs, asset = ("a", "b", "wide", "weight"), tmp_path_factory.mktemp("sums") / "sums.aimodel"
    with quietly(), torch.no_grad():
        converter = new_converter()
        converter.add_exported_program(exported(Computing(), given), input_names=inputs, output_names=NAMES)
        converter.to_coreai().save_asset(asset)
    program = CoreAIProgram(asset)
    return program.function("main")(dict(zip(inputs, given, strict=True)), program.make_state())


def test_products_of_activations_are_rounded_and_added_one_by_one(
    given: tuple[Tensor, ...], computed: dict[str, Tensor]
) -> None:
    a, b, wide, weight = given
    assert torch.equal(computed["products"], multiply(a, b))
    assert torch.equal(computed["of_one"], multiply(a[:, :, :1], b))
    assert torch.equal(computed["swapped"], multiply(b.transpose(2, 3), a.transpose(2, 3)))
    assert torch.equal(computed["flat"], multiply(weight[:, :, 0, 0], wide[0, :, 0]))
    assert not torch.equal(computed["products"], torch.matmul(a.float(), b.float()).half())


def test_all_other_sums_are_float32_and_rounded_once(given: tuple[Tensor, ...], computed: dict[str, Tensor]) -> None:
    _, _, wide, weight = (each.float() for each in given)
    assert torch.equal(computed["convolution"], F.conv2d(wide, weight).half())
    assert torch.equal(computed["sum"], wide.sum(1).half())
    assert torch.equal(computed["mean"], wide.mean(1).half())
    assert torch.equal(computed["softmax"], torch.softmax(wide, 1).half())
