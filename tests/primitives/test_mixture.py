"""Mixtures of experts in place of an MLP against transformers' own blocks, and what mistakes in them look like."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from figures import psnr
from mixture_families import EXPERTS, HIDDEN, MIXTURES, TOP, compared, engine, hidden_state, theirs
from torch import Tensor, nn

from coreai_recipes.primitives.experts import FAR_BELOW, ScoreRouter
from coreai_recipes.recipe import schema


@pytest.mark.parametrize("tokens", [1, 2, 9])
@pytest.mark.parametrize("decode", ["gathered", "all"])
@pytest.mark.parametrize("name", MIXTURES)
def test_a_mixture_equals_transformers_block(name: str, decode: str, tokens: int) -> None:
    for _ in range(3):
        assert psnr(*compared(name, decode, tokens)) >= 120


def test_only_one_token_with_gathered_reads_some_experts_alone() -> None:
    mixture = MIXTURES["qwen3_moe"]
    block, x = mixture.block(), hidden_state(1)
    _, _, chosen = block.gate(x[0])
    block.experts.gate_up_proj[[expert for expert in range(EXPERTS) if expert not in chosen]] = torch.nan
    assert engine(mixture.ours(block), x).isfinite().all()
    assert not engine(mixture.ours(block, "all"), x).isfinite().any()


# --- routers ----------------------------------------------------------------------------------------------------------


def router(**spec: Any) -> ScoreRouter:
    """One whose logits are its input."""
    module = ScoreRouter(schema.ExpertRouter(**spec), 8, 8)
    module.proj.weight.copy_(torch.eye(8)[..., None, None])
    if module.bias is not None:
        module.bias.zero_()
    return module


def route(module: ScoreRouter, logits: list[float]) -> tuple[list[int], list[float]]:
    weights, chosen = module(torch.tensor(logits).view(1, 8, 1, 1))
    return chosen.flatten().tolist(), weights.flatten().tolist()


def test_a_bias_chooses_and_does_not_weigh() -> None:
    module = router(score="sigmoid", bias="choice", top=2)
    module.bias[0, 7] = 5.0
    chosen, weights = route(module, [0.0, 3.0, 2.0, 1.0, 0.0, 0.0, 0.0, -4.0])
    assert chosen == [7, 1]
    assert weights == pytest.approx(torch.sigmoid(torch.tensor([-4.0, 3.0])).tolist())


def test_only_the_best_groups_are_chosen_from() -> None:
    """The best expert of all is alone in a group whose two best do not add up."""
    logits = [9.0, -9.0, 2.1, 2.0, 1.0, 1.5, -9.0, -9.0]
    assert route(router(score="sigmoid", top=2, groups=4, top_groups=4), logits)[0] == [0, 2]
    # sums of sigmoids: 1.0, 1.77, 1.55, 0
    assert route(router(score="sigmoid", top=2, groups=4, top_groups=1), logits)[0] == [2, 3]
    assert route(router(score="sigmoid", top=3, groups=4, top_groups=2), logits)[0] == [2, 3, 5]
    assert route(router(score="sigmoid", top=2, groups=4, top_groups=1, groups_by="best"), logits)[0] == [0, 1]


def test_sparsemixer_weighs_each_of_the_best_among_those_near_it() -> None:
    """Near 4 is 3.9, and 3 is not; near 3.9 nothing is that was not chosen before."""
    logits = [4.0, 3.9, 3.0, 0.0, 0.0, -9.0, 0.0, 0.0]
    chosen, weights = route(router(score="sparsemixer", jitter=0.05, top=2), logits)
    assert chosen == [0, 1]
    assert weights == pytest.approx([float(torch.sigmoid(torch.tensor(0.1))), 1.0])
    # all are near where the best are below zero: each difference is at most its own size
    logits = [-1.0, -2.0, -3.0, -30.0, -30.0, -30.0, -30.0, -30.0]
    chosen, weights = route(router(score="sparsemixer", jitter=0.5, top=2), logits)
    below = torch.softmax(torch.tensor(logits), 0)[0], torch.softmax(torch.tensor(logits[1:]), 0)[0]
    assert (chosen, weights) == ([0, 1], pytest.approx([float(part) for part in below]))


def test_sparsemixer_is_finite_in_float16_far_above_and_below() -> None:
    module = router(score="sparsemixer", jitter=0.01, top=2).half()
    weights, chosen = module(torch.tensor([600.0, -600.0, 5.0, 4.0, 0.0, 0.0, 0.0, 0.0]).half().view(1, 8, 1, 1))
    assert chosen.flatten().tolist() == [0, 2]
    assert weights.flatten().tolist() == [1.0, 1.0]


def test_a_group_that_is_far_below_cannot_be_chosen_and_float16_keeps_the_others_bits() -> None:
    module = router(score="sigmoid", bias="choice", top=4, groups=2, top_groups=1)
    x = torch.randn(1, 8, 1, 64).half().float()
    for half in (False, True):
        given = x.half() if half else x
        _, chosen = (module.half() if half else module)(given)
        assert bool(((chosen < 4).all(1) | (chosen >= 4).all(1)).all())
    assert FAR_BELOW < 65504


def test_scores_that_are_all_zero_give_no_nan() -> None:
    chosen, weights = route(router(score="sigmoid", top=2, renorm=True), [-200.0] * 8)
    assert len(set(chosen)) == 2
    assert all(weight == weight for weight in weights)


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
def test_of_equal_experts_exactly_top_are_chosen(score: str) -> None:
    for groups in (1, 4):
        module = router(score=score, top=3, renorm=True, groups=groups, top_groups=min(groups, 2))
        chosen, weights = route(module, [0.0] * 8)
        assert len(set(chosen)) == 3
        assert weights == pytest.approx([1 / 3] * 3)


# --- what a mistake would look like -----------------------------------------------------------------------------------


def swap_gate_and_up(module: nn.Module) -> None:
    module.gate_up.copy_(torch.cat(list(reversed(module.gate_up.chunk(2, dim=1))), 1))


def interleave_gate_and_up(module: nn.Module) -> None:
    shape = module.gate_up.shape
    module.gate_up.copy_(module.gate_up.view(EXPERTS, shape[1] // 2, 2, HIDDEN).transpose(1, 2).reshape(shape))


def shift_the_experts(module: nn.Module) -> None:
    module.down.copy_(module.down.roll(1, 0))


def leave_out_the_shared_expert(module: nn.Module) -> None:
    module.shared = None


def leave_out_the_shared_experts_factor(module: nn.Module) -> None:
    module.shared_factor = None


def drop_the_choosing_bias(module: nn.Module) -> None:
    module.router.bias.zero_()


class Weighing(nn.Module):
    """The choosing bias in the weights too."""

    def __init__(self, router: ScoreRouter) -> None:
        super().__init__()
        self.router = router

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        _, chosen = self.router(x)
        weights = (torch.sigmoid(self.router.proj(x)) + self.router.bias).gather(1, chosen)
        return weights / weights.sum(1, keepdim=True) * self.router.spec.scale, chosen


def weigh_by_the_choosing_bias(module: nn.Module) -> None:
    module.router = Weighing(module.router)


def leave_out_the_clamp(module: nn.Module) -> None:
    module.clamp = None


def clamp_elsewhere(module: nn.Module) -> None:
    module.clamp = module.clamp.model_copy(update={"limit": 2.0})


def make_the_gate_steeper(module: nn.Module) -> None:
    module.clamp = module.clamp.model_copy(update={"alpha": 1.702})


def drop_a_bias(name: str) -> Callable[[nn.Module], None]:
    return lambda module: module.get_parameter(name).zero_()


ROUTER_MUTANTS: list[tuple[str, dict[str, Any]]] = [
    ("qwen3_moe", {"renorm": False}),
    ("qwen3_moe, not renormed", {"renorm": True}),
    ("qwen3_moe", {"top": TOP - 1}),
    ("qwen3_moe, not renormed", {"score": "sigmoid"}),
    ("phimoe", {"jitter": 0.1}),
    ("phimoe", {"jitter": 1.0}),
    ("phimoe", {"score": "softmax", "jitter": None}),
    ("dots1", {"scale": 1.0}),
    ("dots1", {"renorm": False}),
    ("dots1", {"score": "softmax"}),
    ("dots1, not renormed", {"renorm": True}),
    ("dots1, groups", {"groups": 1, "top_groups": 1}),
    ("dots1, groups", {"top_groups": 1, "top": TOP}),
    ("dots1, groups", {"groups": 2, "top_groups": 1}),
    ("deepseek_v2, groups", {"groups_by": "two_best"}),
    ("deepseek_v2, groups", {"scale": 1.0}),
    ("deepseek_v2, groups", {"renorm": True}),
    ("deepseek_v2, groups", {"groups": 1, "top_groups": 1}),
]
MUTANTS: list[tuple[str, Callable[[nn.Module], None]]] = [
    ("qwen3_moe", swap_gate_and_up),
    ("qwen3_moe", interleave_gate_and_up),
    ("qwen3_moe", shift_the_experts),
    ("qwen2_moe", leave_out_the_shared_expert),
    ("qwen2_moe", leave_out_the_shared_experts_factor),
    ("dots1", leave_out_the_shared_expert),
    ("dots1", drop_the_choosing_bias),
    ("dots1", weigh_by_the_choosing_bias),
    ("gpt_oss", swap_gate_and_up),
    ("gpt_oss", interleave_gate_and_up),
    ("gpt_oss", leave_out_the_clamp),
    ("gpt_oss", clamp_elsewhere),
    ("gpt_oss", make_the_gate_steeper),
    ("gpt_oss", drop_a_bias("router.proj.bias")),
    ("gpt_oss", drop_a_bias("gate_up_bias")),
    ("gpt_oss", drop_a_bias("down_bias")),
]


@pytest.mark.parametrize(("name", "change"), ROUTER_MUTANTS)
def test_a_rule_of_the_router_that_is_changed_is_far_below_the_floor(name: str, change: dict[str, Any]) -> None:
    mixture = MIXTURES[name]
    block, x = mixture.block(), hidden_state(64)
    assert psnr(theirs(block, x), engine(mixture.ours(block), x)) >= 120
    assert psnr(theirs(block, x), engine(mixture.ours(block, **change), x)) < 60


@pytest.mark.parametrize(("name", "mutate"), MUTANTS)
def test_a_mistake_in_one_part_is_far_below_the_floor(name: str, mutate: Callable[[nn.Module], None]) -> None:
    mixture = MIXTURES[name]
    block, x = mixture.block(), hidden_state(64)
    module = mixture.ours(block)
    mutate(module)
    assert psnr(theirs(block, x), engine(module, x)) < 60
