"""transformers' greedy texts of several prompts at once are those of each prompt on its own."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from test_verify_ties import save_equal
from transformers import CONFIG_MAPPING, AutoModelForCausalLM
from verify_cases import Saved

from coreai_recipes.checkpoint import Checkpoint
from coreai_recipes.recipe import Recipe
from coreai_recipes.verification.greedy import generate, rows_of
from coreai_recipes.verification.reference import Reference
from coreai_recipes.verification.ties import noting

PROMPTS = ((5, 9, 2, 7, 1, 8), (3, 4, 6), (11, 2, 5, 3))
STEPS = (4, 7, 6)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_prompts_of_several_lengths_go_on_together(family: str, saved: Callable[[str], Saved]) -> None:
    compare(*saved(family))


@pytest.mark.parametrize("family", ["gpt_oss", "deepseek_v3"])
def test_the_experts_of_each_prompt_are_told_apart(family: str, tmp_path: Path) -> None:
    assert compare(*save_equal(family, tmp_path, equal=False)) > 0


def compare(recipe: Recipe, checkpoint: Checkpoint) -> int:
    """Holds the texts of all prompts together against each one's own; gives how many layers chose experts."""
    compared = 0
    with torch.inference_mode():
        reference = Reference(recipe, checkpoint)
        model = reference.fill_all()
        with noting(reference.layers) as choices:
            together = generate(model, PROMPTS, STEPS)
        by_layer = choices()
        for index, (prompt, steps, (tokens, logits)) in enumerate(zip(PROMPTS, STEPS, together, strict=True)):
            with noting(reference.layers) as choices:
                ((alone, expected),) = generate(model, [prompt], [steps])
            assert tokens.tolist() == alone.tolist()
            assert len(tokens) == steps
            torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
            rows = rows_of(index, PROMPTS, steps)
            for choice, own in zip(by_layer, choices(), strict=True):
                assert (choice is None) is (own is None)
                if choice is not None and own is not None:
                    assert torch.equal(choice.at(rows).taken.sort(1)[0], own.taken.sort(1)[0])
                    compared += 1
    return compared


def test_one_prompt_is_what_transformers_generates(saved: Callable[[str], Saved]) -> None:
    with torch.inference_mode():
        model = Reference(*saved("llama")).fill_all()
        ((tokens, _),) = generate(model, PROMPTS[:1], [12])
        expected = model.generate(torch.tensor(PROMPTS[:1]), max_new_tokens=12, min_new_tokens=12, do_sample=False)  # type: ignore[operator]
    assert tokens.tolist() == expected[0, len(PROMPTS[0]) :].tolist()


@pytest.mark.parametrize("family", ["bamba", "granitemoehybrid", "qwen3_5_text"])
def test_a_hybrid_without_a_layer_of_attention_goes_on_from_its_states(family: str) -> None:
    """transformers asks its cache for a length, which then none of its layers has: it raised ValueError."""
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2}
    mamba = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "shared_intermediate_size": 32}
    layers = {} if family == "bamba" else {"layer_types": ["linear_attention"] * 2}
    config = CONFIG_MAPPING[family](**sizes, num_attention_heads=4, num_key_value_heads=2, **layers, **mamba)
    assert set(config.layer_types) == {"linear_attention"}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.inference_mode():
        on_a_cache, whole = generate(model, PROMPTS, STEPS), generate(model, PROMPTS, STEPS, cached=False)
    for (tokens, logits), (expected, expected_logits) in zip(on_a_cache, whole, strict=True):
        assert tokens.tolist() == expected.tolist()
        torch.testing.assert_close(logits, expected_logits, atol=1e-4, rtol=1e-4)
