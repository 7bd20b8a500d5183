"""Equal experts and equal tokens: a tie is named, is nobody's failure, and hides nothing else."""

from pathlib import Path
from typing import Any

import pytest
import torch
from family_configs import all_configs
from small_models import small_model
from torch import Tensor
from verify_cases import Export

from coreai_recipes.checkpoint.safetensors import SafetensorsCheckpoint
from coreai_recipes.primitives.experts import Router, ScoreRouter
from coreai_recipes.recipe.importing.assembling import recipe_from_config
from coreai_recipes.recipe.schema import Compress, Recipe, StoredIntegers
from coreai_recipes.verification import StageResult, run_stages
from coreai_recipes.verification.ties import TIE, TIE_IN_FLOAT16, ExpertChoice, settle

CONFIGS = all_configs()
MIXTURES = [
    "deepseek_v3", "dots1", "gemma4_text", "glm4_moe", "gpt_oss", "granitemoe", "mixtral", "olmoe", "qwen2_moe",
    "qwen3_moe",
]  # fmt: skip


def save_equal(name: str, folder: Path, equal: bool = True) -> tuple[Recipe, SafetensorsCheckpoint]:
    """A small random model of which a router's logits are all equal at every token, and its experts are not."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = dict(CONFIGS[f"{name}-unusual"])
    recipe = recipe_from_config(config, "small").recipe
    theirs = AutoConfig.for_model(config.pop("model_type"), **config)
    theirs._experts_implementation = "eager"
    model = small_model(AutoModelForCausalLM.from_config, theirs, seed=3)
    choosers = ("gate.weight", "e_score_correction_bias", "router.weight", "router.bias", "proj.weight", "layer.weight")
    with torch.no_grad():
        for key, tensor in model.state_dict().items():
            if key.endswith(choosers) and ("router" in key or ".gate." in key) and equal:
                tensor[:] = tensor[:1].clone()
    model.save_pretrained(folder)
    return recipe, SafetensorsCheckpoint(folder)


@pytest.fixture
def another_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    round_otherwise(monkeypatch)


def round_otherwise(monkeypatch: pytest.MonkeyPatch, by: float = 1e-6) -> None:
    """Our routers' logits as another kernel might have them: by some millionths more the later an expert comes."""
    for router in (Router, ScoreRouter):

        def logits(self: Any, x: Tensor, exact: Any = router.logits) -> Tensor:
            found: Tensor = exact(self, x)
            return found + by * torch.arange(found.shape[1]).view(1, -1, 1, 1)

        monkeypatch.setattr(router, "logits", logits)


@pytest.fixture(autouse=True)
def _short_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coreai_recipes.verification.greedy.TOKENS", 8)


def run(recipe: Recipe, checkpoint: SafetensorsCheckpoint) -> StageResult:
    return run_stages(recipe, checkpoint, None, stages=["torch"]).stages[0]


@pytest.mark.parametrize("name", MIXTURES)
def test_equal_experts_are_named_and_fail_nothing(name: str, tmp_path: Path, another_processor: None) -> None:
    result = run(*save_equal(name, tmp_path))
    assert result.passed, result.detail
    assert result.detail["tied_experts"]["choices"] > 50
    assert result.detail["greedy"]["equal"] is True


def test_a_choice_that_float16_cannot_make_is_a_tie_where_one_computes_in_it() -> None:
    """An int8 gemma4-moe lost 20 dB in float16: at one position two experts were 0.0002 apart, and the package took the
    other one."""
    choice = ExpertChoice(torch.tensor([[0.3, 0.2498, 0.25, 0.2002]]), torch.tensor([[0, 2]]))
    other = torch.tensor([[0, 1]])
    assert settle(choice, other) == []
    (tie,) = settle(choice, other, within=TIE_IN_FLOAT16)
    assert str(tie) == "position 0: transformers takes 2, ours 1, scores apart by 0.0002"
    assert settle(choice, torch.tensor([[0, 3]]), within=TIE_IN_FLOAT16) == []


def test_a_compressed_package_in_float16_is_compared_with_the_experts_that_it_took(
    tmp_path: Path, export: Export, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, checkpoint = save_equal("qwen3_moe", tmp_path)
    recipe = recipe.model_copy(update={"compress": Compress(default=StoredIntegers(kind="int8"))})
    package = export(recipe, checkpoint)
    round_otherwise(monkeypatch, -5e-5)
    (result,) = run_stages(recipe, checkpoint, package, stages=["package_float16"]).stages
    assert result.passed, result.detail
    assert result.detail["tied_experts"]["choices"] > 50


@pytest.mark.parametrize("name", ["qwen3_moe", "gpt_oss"])
def test_equal_experts_fail_no_package(
    name: str, tmp_path: Path, export: Export, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The package took others than our torch modules, which was 30 dB where 90 are asked for. Whichever it takes, ours
    are once the first of the equal ones, and once the last."""
    recipe, checkpoint = save_equal(name, tmp_path)
    package = export(recipe, checkpoint)
    named: list[str] = []
    for by in (1e-6, -1e-6):
        with monkeypatch.context() as patch:
            round_otherwise(patch, by)
            (result,) = run_stages(recipe, checkpoint, package, stages=["package"]).stages
        assert result.passed, result.detail
        named += result.detail.get("tied_experts", {}).get("first", [])
    assert "torch takes" in named[0]
    assert "the package" in named[0]


def test_a_package_of_other_experts_is_no_tie(tmp_path: Path, export: Export, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, checkpoint = save_equal("qwen3_moe", tmp_path, equal=False)
    package = export(recipe, checkpoint)
    exact = ScoreRouter.logits
    monkeypatch.setattr(ScoreRouter, "logits", lambda self, x: exact(self, x).roll(1, 1))
    (result,) = run_stages(recipe, checkpoint, package, stages=["package"]).stages
    assert result.passed is False
    assert "tied_experts" not in result.detail


def test_experts_that_are_not_equal_are_no_tie(tmp_path: Path, another_processor: None) -> None:
    result = run(*save_equal("qwen3_moe", tmp_path, equal=False))
    assert result.passed, result.detail
    assert "tied_experts" not in result.detail


def test_a_tie_hides_no_wrong_expert(tmp_path: Path, another_processor: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The experts that both take are compared as everywhere: here ours has two of them in each other's place."""
    from coreai_recipes.primitives.experts import Mixture

    mix = Mixture.mix

    def swapped(self: Mixture, x: Tensor, weights: Tensor, chosen: Tensor, *more: Any) -> Tensor:
        return mix(self, x, weights, torch.where(chosen < 2, 1 - chosen, chosen), *more)

    monkeypatch.setattr(Mixture, "mix", swapped)
    result = run(*save_equal("qwen3_moe", tmp_path))
    assert result.passed is False
    assert result.detail["first_below"]["tensor"].endswith(".output")


def test_a_router_that_chooses_wrong_is_no_tie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = ScoreRouter.logits
    monkeypatch.setattr(ScoreRouter, "logits", lambda self, x: exact(self, x).roll(1, 1))
    result = run(*save_equal("qwen3_moe", tmp_path, equal=False))
    assert result.passed is False
    assert "tied_experts" not in result.detail


def choose(scores: list[float], taken: list[int], **groups: Tensor) -> ExpertChoice:
    return ExpertChoice(torch.tensor([scores]), torch.tensor([taken]), **groups)


@pytest.mark.parametrize(
    ("scores", "ours", "is_tie"),
    [
        ([0.4, 0.3, 0.3, 0.0], [0, 2], True),
        ([0.4, 0.3, 0.3 * (1 - TIE / 2), 0.0], [0, 2], True),
        ([0.4, 0.3, 0.3 * (1 - 2 * TIE), 0.0], [0, 2], False),
        ([0.4, 0.3, 0.3, 0.3], [2, 3], False),  # the best one was not taken, and another is not as good
        ([0.3, 0.3, 0.3, 0.3], [2, 3], True),
        ([4e-5, 2e-5, 1e-5, 0.9], [0, 2], False),  # far apart for scores as small as these
        ([-0.01, -5.0, -5.0001, -9.0], [0, 2], True),  # of signed scores the largest is the measure
        ([-0.01, -5.0, -5.1, -9.0], [0, 2], False),
    ],
)
def test_what_is_a_tie(scores: list[float], ours: list[int], is_tie: bool) -> None:
    ties = settle(choose(scores, [0, 1]), torch.tensor([ours]))
    assert bool(ties) == is_tie


def test_an_expert_of_an_equal_group_is_a_tie_and_one_of_a_worse_group_is_none() -> None:
    """Six experts in three groups, of which the first is taken; the second is as good, the third is not."""
    groups = {"group_scores": torch.tensor([[0.8, 0.8, 0.5]]), "groups_taken": torch.tensor([[0]])}
    choice = choose([0.5, 0.3, 0.4, 0.4, 0.3, 0.2], [0, 1], **groups)
    assert settle(choice, torch.tensor([[2, 3]]))
    assert not settle(choice, torch.tensor([[4, 5]]))


def test_the_message_names_the_place_and_both_choices() -> None:
    (tie,) = settle(choose([0.5, 0.25, 0.25], [0, 1]), torch.tensor([[2, 0]]), start=0)
    assert str(tie) == "position 0: transformers takes 1, ours 2, scores apart by 0"
