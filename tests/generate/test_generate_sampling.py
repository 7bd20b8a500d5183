"""Which token is picked."""

from collections import Counter
from typing import Any

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
        "temperature nan must be 0 or more; 0 is greedy",
        "top_p 1.5 is not in [0, 1]",
    )


@pytest.mark.parametrize(
    "settings",
    [
        {"top_k": 3},
        {"min_p": 0.2},
        {"repetition_penalty": 1.7},
        {"repetition_penalty": 0.6, "temperature": 0.8, "top_k": 12, "top_p": 0.9, "min_p": 0.02},
    ],
)
def test_what_can_be_drawn_is_what_transformers_leaves(settings: dict[str, Any]) -> None:
    """The shares that torch.multinomial is given, against transformers' own processors in their order."""
    from transformers.generation import logits_process as theirs

    made = torch.Generator().manual_seed(5)
    logits = torch.randn(40, generator=made) * 2
    text = [3, 3, 17, int(logits.argmax())]
    processors = [
        theirs.RepetitionPenaltyLogitsProcessor(settings.get("repetition_penalty", 1.0)),
        theirs.TemperatureLogitsWarper(settings.get("temperature", 1.0)),
        theirs.TopKLogitsWarper(settings.get("top_k", 40)),
        theirs.TopPLogitsWarper(settings.get("top_p", 1.0)),
        theirs.MinPLogitsWarper(settings.get("min_p", 0.0)),
    ]
    scores = logits[None]
    for processor in processors:
        scores = processor(torch.tensor([text]), scores)
    sampler = Sampler(**({"temperature": 1.0, "seed": 1} | settings))
    counts = torch.bincount(torch.tensor([sampler.pick(logits, text) for _ in range(4000)]), minlength=40)
    expected = scores.softmax(-1)[0]
    assert not counts[expected == 0].any()
    assert (counts / 4000 - expected).abs().max() < 0.03


def test_a_repetition_penalty_changes_a_greedy_answer_too() -> None:
    logits = torch.tensor([2.0, 1.9, -3.0])
    assert Sampler(repetition_penalty=1.2).pick(logits, [0]) == 1
    assert Sampler(repetition_penalty=1.2).pick(logits, []) == 0
