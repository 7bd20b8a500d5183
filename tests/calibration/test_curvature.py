"""What an error is predicted to cost, against the KL divergence that it does."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from coreai_recipes.calibration.backward import Backward
from coreai_recipes.calibration.curvature import Curvature, ErrorCost
from coreai_recipes.checkpoint.base import Checkpoint
from coreai_recipes.checkpoint.open import open_checkpoint
from coreai_recipes.decoder.filling import Weight
from coreai_recipes.decoder.model import build_decoder
from coreai_recipes.recipe import Recipe, load_recipe
from coreai_recipes.verification.loss import logits_of_decoder, measure_loss

TINY = Path(__file__).parents[1] / "checkpoints/tiny-llama"


class Disturbed:
    """A parameter and an error in it."""

    def __init__(self, weight: Weight, error: Tensor) -> None:
        self.tensor, self._weight, self._error = weight.tensor, weight, error

    def blocks(self) -> Iterator[Tensor]:
        yield self.read()

    def read(self) -> Tensor:
        return self._weight.read().float() + self._error

    def read_rows(self, rows: Sequence[int]) -> Tensor:
        return self.read()[list(rows)]


def models() -> Iterator[tuple[Recipe, Checkpoint]]:
    yield load_recipe("tiny-llama"), open_checkpoint(TINY)
    gemma4 = load_recipe("gemma4-tiny")  # layers that share caches, inputs by layer, a softcap, a tied table
    assert gemma4.reference is not None
    yield gemma4, open_checkpoint(str(gemma4.reference.checkpoint))


@pytest.mark.parametrize(("recipe", "checkpoint"), [pytest.param(*pair, id=pair[0].name) for pair in models()])
@pytest.mark.usefixtures("small_tensors")
def test_errors_cost_what_is_predicted(recipe: Recipe, checkpoint: Checkpoint) -> None:
    generator = torch.Generator().manual_seed(0)
    windows = torch.randint(1, recipe.model.vocab_size, (2, 64), generator=generator).tolist()
    backward = Backward(build_decoder(recipe), checkpoint, windows, Curvature.of)
    errors: dict[str, Tensor] = {}
    predicted: dict[str, float] = {}
    for _, curvatures in backward.run():
        for name, curvature in curvatures.items():
            weight = backward.weights[name].read().float()
            errors[name] = 0.02 * weight.std() * torch.randn(weight.shape, generator=generator)
            predicted[name] = curvature.cost(errors[name], backward.positions)
    predicted["embedding.weight"] += backward.lookup_cost(errors["embedding.weight"])
    known = Backward(build_decoder(recipe), checkpoint, windows, lambda name, *_: ErrorCost(errors[name]))
    costs = {name: cost.cost(known.positions) for _, found in known.run() for name, cost in found.items()}
    costs["embedding.weight"] += known.lookup_cost(errors["embedding.weight"])
    assert costs == pytest.approx(predicted, rel=1e-4)  # errors that are known before the pass: the same, and no H
    matrices = [name for name, weight in backward.weights.items() if weight.read().dim() > 1]
    assert set(matrices) - predicted.keys() <= {"per_layer_table.weight"}  # which lies beside the package

    def measured(names: Sequence[str]) -> float:
        weights: Mapping[str, Weight] = {
            name: Disturbed(weight, errors[name]) if name in names else weight
            for name, weight in backward.weights.items()
        }
        ours = logits_of_decoder(recipe, weights)
        return measure_loss(windows, ours, logits_of_decoder(recipe, backward.weights)).kl or 0.0

    assert 0.8 < measured([*predicted]) / sum(predicted.values()) < 1.3
    for part in ("mlp.down", "embedding"):
        names = [name for name in predicted if part in name]
        assert 0.7 < measured(names) / sum(predicted[name] for name in names) < 1.4, part


def test_errors_of_experts_meet_their_own_inputs() -> None:
    """Together they cost what each does alone, whether the experts are given one input or have their own."""
    generator = torch.Generator().manual_seed(1)
    errors, own, shared, squares = (
        torch.rand(3, *size, generator=generator) for size in ((5, 4), (4, 7), (4, 7), (5, 7))
    )
    for inputs in (own, shared[:1]):
        together, alone = ErrorCost(errors), [ErrorCost(error) for error in errors]
        together.add(inputs, squares)
        for expert, each in enumerate(alone):
            each.add(inputs[expert % len(inputs)], squares[expert])
        assert together.cost(7) == pytest.approx(sum(each.cost(7) for each in alone), rel=1e-6)
    curvature = Curvature(5, 4)
    curvature.add(own[0], squares[0])
    first = ErrorCost(errors[0])
    first.add(own[0], squares[0])
    assert first.cost(7) == pytest.approx(curvature.cost(errors[0], 7), rel=1e-5)
