"""What ANEMLL's host is told: meta.yaml as its sources read it, and which files of its own are refused."""

import json

import pytest
import yaml

from coreai_recipes.hosts.anemll import CONFIG, META, AnemllForm, Settings, files_of, functions_of, logit_sizes
from coreai_recipes.recipe import load_recipe
from coreai_recipes.recipe.host_form import anemll_form

SAID = {"monolithic_model": "m.mlmodelc", "context_length": 512, "batch_size": 64, "split_lm_head": 2}


def form_of(*overrides: str) -> AnemllForm:
    return anemll_form(load_recipe("tiny-llama", ["export.host=anemll", *overrides]))


def meta_of(form: AnemllForm) -> Settings:
    return Settings.read(yaml.safe_load(files_of(form, "model.mlpackage", [7, 3])[META]))


def test_meta_yaml_says_what_the_package_is() -> None:
    assert meta_of(form_of()) == Settings("model.mlmodelc", 256, 16, 1, False, (512,))
    assert meta_of(form_of("export.outputs=ids", "export.functions.prefill=8")).prefill == 8
    assert meta_of(form_of("export.outputs=ids", "model.vocab_size=33000")) == Settings(
        "model.mlmodelc", 256, 16, 1, True, (33000,)
    )
    assert meta_of(form_of("model.vocab_size=33000")).sizes == (11008, 11008, 10984)


def test_config_json_has_the_tokens_that_end_an_answer() -> None:
    """Without it the host writes one of its own, and guesses them by their words."""
    text = files_of(form_of(), "model.mlpackage", [7, 3])[CONFIG]
    assert json.loads(text) == {"model_type": "llama", "eos_token_id": [3, 7]}


@pytest.mark.parametrize("vocab_size", [1, 512, 16_384, 16_385, 33_000, 151_936, 262_144])
def test_the_parts_of_the_logits_are_tokens_alone(vocab_size: int) -> None:
    """The host takes the best of all columns, so padding could win."""
    sizes = logit_sizes(vocab_size)
    assert sum(sizes) == vocab_size
    assert all(0 < size <= 16_384 for size in sizes)


def test_the_functions_are_the_hosts() -> None:
    functions = functions_of(form_of())
    assert list(functions) == ["infer", "prefill"]
    query, inputs, outputs = functions["prefill"]
    assert query == 16
    assert inputs == {
        "input_ids": ("int32", (1, 16)),
        "position_ids": ("int32", (16,)),
        "causal_mask": ("float16", (1, 1, 16, 256)),
        "current_pos": ("int32", (1,)),
    }
    assert outputs == {"logits1": ("float16", (1, 1, 512))}


@pytest.mark.parametrize(
    ("model_type", "parameters", "message"),
    [
        ("chunked", SAID, "meta.yaml: model_type is not monolithic"),
        (
            "monolithic",
            {**SAID, "sliding_window": 512},
            "meta.yaml: from its sliding window on, the host calls functions that rotate a cache",
        ),
        (
            "monolithic",
            {**SAID, "model_prefix": "Gemma3-x", "context_length": 1024},
            "meta.yaml: from its sliding window on, the host calls functions that rotate a cache",
        ),
        (
            "monolithic",
            {**SAID, "update_mask_prefill": True},
            "meta.yaml: with update_mask_prefill, the host gives one more input",
        ),
    ],
)
def test_a_form_that_is_called_otherwise_is_refused(model_type: str, parameters: object, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        Settings.read({"model_info": {"model_type": model_type, "parameters": parameters}})


def test_a_file_of_anything_else_is_refused() -> None:
    for content in ({}, {"model_info": []}, {"model_info": {"model_type": "monolithic"}}):
        with pytest.raises(ValueError, match=r"meta.yaml: it has no model_info with parameters"):
            Settings.read(content)


def test_what_is_not_said_is_the_hosts_default() -> None:
    found = Settings.read({"model_info": {"model_type": "monolithic", "parameters": {}}})
    assert found == Settings("llama_monolithic_full.mlmodelc", 2048, 32, 8, False, ())
