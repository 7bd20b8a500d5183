"""A small package of short convolutions through sessions, against transformers' whole sequences."""

from pathlib import Path
from typing import Any

import pytest
import torch
from fake_bundle import byte_level_tokenizer, write_tokenizer
from figures import psnr
from small_models import small_model
from torch import Tensor

from coreai_recipes import Bundle, build
from coreai_recipes.generate import open_model
from coreai_recipes.generate.prompt_cache import PromptCache
from coreai_recipes.recipe.importing.assembling import recipe_from_config
from coreai_recipes.recipe.schema import Recipe

pytestmark = pytest.mark.xdist_group(__name__)

PROMPT = [(37 * index + 5) % 101 for index in range(21)]


@pytest.fixture(scope="module")
def theirs() -> Any:
    from transformers import Lfm2Config, Lfm2ForCausalLM

    config = Lfm2Config(
        vocab_size=byte_level_tokenizer().get_vocab_size(), hidden_size=48, intermediate_size=88, num_hidden_layers=4,
        num_attention_heads=6, num_key_value_heads=2, block_auto_adjust_ff_dim=False, conv_L_cache=4,
        layer_types=["conv", "full_attention", "conv", "conv"], max_position_embeddings=128, eos_token_id=None,
    )  # fmt: skip
    model = small_model(Lfm2ForCausalLM, config)
    for parameter in model.parameters():
        parameter.data = parameter.data.half().float()
    return model


@pytest.fixture(scope="module", params=[1, 2], ids=["one package", "two packages"])
def built(request: pytest.FixtureRequest, theirs: Any, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("small")
    theirs.save_pretrained(folder / "checkpoint")
    write_tokenizer(folder / "checkpoint", eos_token=None)
    recipe = recipe_from_config(theirs.config.to_dict(), "small").recipe.model_dump(mode="json", exclude_unset=True)
    recipe["export"] |= {"context": 96, "functions": {"prefill": 8, "score": 4}, "chunks": request.param}
    return build(Recipe.model_validate(recipe), folder / "checkpoint", folder / "dist", verified=False)


def whole(theirs: Any, token_ids: list[int]) -> Tensor:
    with torch.no_grad():
        logits: Tensor = theirs(torch.tensor([token_ids]), use_cache=False).logits[0, -1]
    return logits


def test_the_manifest_says_what_each_package_carries(built: Bundle) -> None:
    carried = built.described.carried
    assert carried is not None
    assert {tensor.role for tensor in carried.values()} == {"convolution"}
    assert sum(tensor.count for tensor in carried.values()) == 3
    for name, tensor in carried.items():
        of_functions = [
            f for program in built.described.programs for f in program.functions.values() if name in f.inputs
        ]
        assert len(of_functions) == 3
        assert {f.inputs[name].shape for f in of_functions} == {f.outputs[f"new_{name}"].shape for f in of_functions}
        assert tensor.shape[1:] == (3, 48)


def test_a_conversation_says_what_whole_sequences_say(built: Bundle, theirs: Any) -> None:
    """A prompt in padded calls, its answer token by token, another answer to it, the prompt again, another prompt."""
    session = open_model(built.path, built.manifest, "evaluator").session
    texts = [[*PROMPT, *range(3, end)] for end in range(3, 8)]
    texts += [[*PROMPT, 3, 90, 91], PROMPT, [*PROMPT[:9], 60, 61], [7]]
    assert min(psnr(whole(theirs, text), session.feed(text)) for text in texts) >= 90


def test_a_prompt_cache_goes_on_from_what_was_carried(built: Bundle, theirs: Any, tmp_path: Path) -> None:
    first = open_model(built.path, built.manifest, "evaluator")
    first.session.feed(PROMPT)
    PromptCache(tmp_path / "kept", first).save()
    second = open_model(built.path, built.manifest, "evaluator")
    PromptCache(tmp_path / "kept", second).restore()
    assert second.session.token_ids == tuple(PROMPT)
    text = [*PROMPT, 60, 61]
    assert psnr(whole(theirs, text), second.session.feed(text)) >= 90


def test_a_package_says_the_same_twice_of_what_was_kept(built: Bundle) -> None:
    """No call changes the tensors that it was given."""
    session = open_model(built.path, built.manifest, "evaluator").session
    session.feed(PROMPT)
    once, again = (session.feed([*PROMPT, *end]) for end in ([60, 61], [60, 61]))
    session.feed([*PROMPT, 1, 2, 3])
    assert torch.equal(once, again)
    assert torch.equal(once, session.feed([*PROMPT, 60, 61]))
