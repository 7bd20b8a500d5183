"""Which token is picked."""

from collections import Counter

import pytest
import torch

from coreai_recipes.errors import UserError
from coreai_recipes.generate import Sampler

LOGITS = torch.tensor([0.0, 3.0, 2.0, -1.0, 2.5])


def test_without_a_temperature_the_best_is_picked() -> None:
    assert Sampler().pick(LOGITS) == 1
    assert Sampler(top_p=0.1, seed=3).pick(LOGITS.half()) == 1


def test_draws_follow_the_softmax_at_the_temperature() -> None:
    sampler = Sampler(temperature=0.7, seed=0)
    counts = Counter(sampler.pick(LOGITS) for _ in range(20000))
    shares = torch.softmax(LOGITS / 0.7, 0)
    for token, share in enumerate(shares.tolist()):
        assert counts[token] / 20000 == pytest.approx(share, abs=0.012)


@pytest.mark.parametrize(
    ("top_p", "tokens"), [(0.0, {1}), (0.4, {1}), (0.6, {1, 4}), (0.9, {1, 4, 2}), (1.0, set(range(5)))]
)
def test_top_p_keeps_the_fewest_tokens_that_reach_it(top_p: float, tokens: set[int]) -> None:
    sampler = Sampler(temperature=1.0, top_p=top_p, seed=1)
    assert {sampler.pick(LOGITS) for _ in range(2000)} == tokens


def test_the_same_seed_gives_the_same_tokens_and_none_gives_others() -> None:
    flat = torch.zeros(1000)

    def draw(seed: int | None) -> list[int]:
        sampler = Sampler(temperature=1.0, seed=seed)
        return [sampler.pick(flat) for _ in range(20)]

    assert draw(7) == draw(7) != draw(8)
    assert draw(None) != draw(None)


@pytest.mark.parametrize("temperature", [1e-45, 1e-12])
@pytest.mark.parametrize("top_p", [0.5, 1.0])
def test_a_tiny_temperature_is_greedy_and_does_not_overflow(temperature: float, top_p: float) -> None:
    assert Sampler(temperature, top_p, seed=0).pick(LOGITS * 1000) == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_no_numbers_are_refused(value: float) -> None:
    with pytest.raises(UserError, match=f"the model's logits are {value}: `recipe verify BUNDLE` names the tensor"):
        Sampler().pick(torch.tensor([0.0, value, 1.0]))


def test_every_bad_setting_is_told() -> None:
    with pytest.raises(UserError) as caught:
        Sampler(temperature=float("nan"), top_p=1.5)
    assert caught.value.problems == (
        "temperature nan is not a number from 0 on; 0 is greedy",
        "top_p 1.5 is not in [0, 1]",
    )
