"""Weights fitted to inputs: held against GPTQ as its paper has it, brute force, and what they are worth."""

import numpy as np
import pytest
import torch
from torch import Tensor

from coreai_recipes.calibration.feedback import feed_back
from coreai_recipes.calibration.fitting import fit
from coreai_recipes.calibration.palettes import fit_palettes
from coreai_recipes.calibration.statistics import Moments, Statistics
from coreai_recipes.calibration.threads import threads
from coreai_recipes.storage.base import Storage
from coreai_recipes.storage.integers import Integers
from coreai_recipes.storage.palette import Palette

INPUTS, ROWS = 70, 32  # more than a block of feedback


@pytest.fixture(scope="module")
def statistics() -> Statistics:
    """Of inputs that are mixed and of uneven size, as a model's are."""
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(INPUTS, INPUTS, generator=generator) @ torch.randn(INPUTS, 400, generator=generator)
    inputs *= torch.logspace(-1, 1, INPUTS)[:, None]
    moments = Moments(INPUTS)
    moments.add(inputs, lambda functions: [function() for function in functions] and None)
    return Statistics(moments.hessian(), moments.tokens)


@pytest.fixture(scope="module")
def weights() -> Tensor:
    return torch.randn(ROWS, INPUTS, generator=torch.Generator().manual_seed(2)) * 0.05


def loss(errors: Tensor, hessian: Tensor) -> float:
    """The squared error of the outputs, one after the other as the definition has it."""
    return sum(float(row @ hessian @ row) for row in errors.double())


def encode(weights: Tensor, storage: Storage, statistics: Statistics) -> Tensor:
    shape = tuple(weights.shape)
    found: list[list[np.ndarray]] = [[] for _ in storage.parts(shape)]
    with threads() as own:
        for part, values in fit([weights], shape, storage, statistics, "w", own):
            found[part].append(values.reshape(-1).copy())
    return storage.decode([np.concatenate(values) for values in found], shape)


def test_moments_are_the_mean_product_with_sinks_capped() -> None:
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(5, 11, generator=generator)
    inputs[:, 0] *= 300  # the first token of a text
    inputs[:, 4] = 0  # a token that no expert took
    moments = Moments(5)
    moments.add(inputs[:, :6], lambda functions: [function() for function in functions] and None)
    sizes = [float(column @ column) for column in inputs[:, :6].t() if column.any()]
    median = sorted(sizes)[(len(sizes) - 1) // 2]
    expected = torch.zeros(5, 5, dtype=torch.float64)
    for column in inputs[:, :6].t():
        size = float(column @ column)
        if size:
            expected += torch.outer(column, column).double() * min(1.0, 4 * median / size)
    assert moments.tokens == 5
    assert torch.allclose(moments.hessian(), expected / 5, rtol=1e-5)


def test_feedback_is_that_of_gptq(statistics: Statistics, weights: Tensor) -> None:
    """Frantar et al., 2022: w_k+1.. -= (w_i - q_i) / U_ii * U_i,k+1.. with U the upper factor of the inverse."""
    step = 0.02
    hessian = statistics.shrunk.double()[statistics.order][:, statistics.order]
    upper = torch.linalg.cholesky(torch.linalg.inv(hessian), upper=True)
    theirs, left = torch.empty_like(weights), weights[:, statistics.order].double()
    for column in range(INPUTS):
        theirs[:, column] = (left[:, column] / step).round() * step
        error = (left[:, column] - theirs[:, column]) / upper[column, column]
        left[:, column + 1 :] -= error[:, None] * upper[column, column + 1 :]
    ours = torch.empty_like(weights)

    def choose(first: int, own: Tensor, targets: Tensor, inside: Tensor, errors: Tensor) -> None:
        for column in range(targets.shape[1]):
            chosen = (targets[:, column] / step).round() * step
            errors[:, column] = own[:, column] - chosen
            targets[:, column + 1 :] += errors[:, column, None] * inside[column, column + 1 :]
            ours[:, first + column] = chosen

    feed_back(weights[:, statistics.order], statistics.feedback, choose)
    # a value in the middle of two may fall on either side
    assert (ours - theirs).abs().gt(step / 2).float().mean() < 0.01
    assert loss(ours - weights[:, statistics.order], hessian) == pytest.approx(
        loss(theirs - weights[:, statistics.order], hessian), rel=0.02
    )


@pytest.mark.parametrize(
    "storage", [Palette(4, 16), Palette(2, 8), Integers(4, 10), Integers(4, 10, False), Integers(4)], ids=str
)
def test_fitted_weights_lose_half_of_what_others_lose(
    storage: Storage, statistics: Statistics, weights: Tensor
) -> None:
    fitted, plain = encode(weights, storage, statistics), storage.as_stored(weights, "w")
    assert loss(fitted - weights, statistics.hessian) < 0.5 * loss(plain - weights, statistics.hessian)


def test_no_single_weight_of_a_palette_can_be_changed_for_the_better(statistics: Statistics, weights: Tensor) -> None:
    indices, palettes = fit_palettes(weights, statistics, 16, 16)
    values = np.take_along_axis(palettes.astype(np.float32), indices.reshape(2, -1).astype(np.int64), 1)
    errors = torch.from_numpy(values.reshape(weights.shape)) - weights
    hessian = statistics.shrunk.double()
    before = loss(errors[:3], hessian)
    generator = np.random.default_rng(4)
    for _ in range(200):
        row, column, entry = generator.integers(3), generator.integers(INPUTS), generator.integers(16)
        changed = errors[:3].clone()
        changed[row, column] = float(palettes[0, entry]) - weights[row, column]
        assert loss(changed, hessian) >= before * (1 - 1e-5)


def test_dead_inputs_zeros_and_outliers_are_harmless() -> None:
    """An input that is always zero must not let its weights drift: another text may use it."""
    moments = Moments(16)
    inputs = torch.randn(16, 50, generator=torch.Generator().manual_seed(5))
    inputs[3] = 0
    moments.add(inputs, lambda functions: [function() for function in functions] and None)
    statistics = Statistics(moments.hessian(), moments.tokens)
    weights = torch.randn(16, 16, generator=torch.Generator().manual_seed(6))
    for changed in (weights, weights * 0, torch.full((16, 16), 0.5), weights.index_fill(0, torch.tensor([2]), 60000.0)):
        fitted = encode(changed, Palette(4, 16), statistics)
        assert fitted.isfinite().all()
        assert (fitted[:2, 3] - changed[:2, 3]).abs().max() <= changed[:2].abs().max()
    assert torch.equal(encode(torch.full((16, 16), 0.5), Palette(4, 16), statistics), torch.full((16, 16), 0.5))
    nothing = Statistics(torch.zeros(16, 16, dtype=torch.float64), 0)
    assert encode(weights, Palette(4, 16), nothing).sub(weights).abs().max() < 0.5
