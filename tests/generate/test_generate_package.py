"""Real small packages, built from random transformers models, against transformers' own generate."""

from pathlib import Path
from typing import Any

import pytest
import torch
from fake_bundle import byte_level_tokenizer, write_tokenizer
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from coreai_recipes import Bundle, Recipe, build, load_recipe
from coreai_recipes.generate import Chat, LanguageModel, answer, open_model
from coreai_recipes.running.program import SavedProgram

pytestmark = pytest.mark.xdist_group(__name__)

CONTEXT = 96
RECIPE = """
recipe: 1
name: small
reference: {{model_type: {model_type}, checkpoint: null}}
model:
  vocab_size: {vocab}
  hidden_size: 48
  norm: {{kind: rms, eps: 1.0e-5}}
  head: {{tied: false}}
  kinds:
    only:
      attention: {{{attention}, num_heads: 6, num_kv_heads: 2, head_dim: 8}}
      rotary: {{kind: full, theta: 10000.0}}
      mlp: {{kind: gated, activation: silu, intermediate_size: 56}}
  layers:
    - {{repeat: 3, of: [only]}}
weights: {{names: llama}}
export:
  context: 96
  functions: {functions}
"""
FORMS = {
    "full": ("llama", "kind: full", "{prefill: 8, decode: 1}"),
    "ring": ("mistral", "kind: sliding, window: 12", "{prefill: 8, decode: 1}"),
    "ring with score": ("mistral", "kind: sliding, window: 12", "{prefill: 8, decode: 1, score: 4}"),
}


@pytest.fixture(scope="module", params=FORMS)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, Any]:
    """The bundle, and the transformers model with the weights as they are stored."""
    folder = tmp_path_factory.mktemp("small")
    model_type, attention, functions = FORMS[request.param]
    vocab = byte_level_tokenizer().get_vocab_size()
    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "vocab_size": vocab, "hidden_size": 48, "intermediate_size": 56, "num_hidden_layers": 3,
        "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 8, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "max_position_embeddings": 128, "initializer_range": 0.3, "tie_word_embeddings": False,
        "bos_token_id": 0, "eos_token_id": None,
    }  # fmt: skip
    if model_type == "llama":
        model: Any = LlamaForCausalLM(LlamaConfig(**shape))
    else:
        model = MistralForCausalLM(MistralConfig(**shape, sliding_window=12))
    model.eval()
    for parameter in model.parameters():  # never model.half(): it would round the buffer of inv_freq too
        parameter.data = parameter.data.half().float()
    model.save_pretrained(folder / "checkpoint")
    write_tokenizer(folder / "checkpoint", eos_token=None)  # nothing ends an answer
    (folder / "small.yaml").write_text(
        RECIPE.format(model_type=model_type, vocab=vocab, attention=attention, functions=functions)
    )
    recipe: Recipe = load_recipe(folder / "small.yaml")
    return build(recipe, folder / "checkpoint", folder / "dist", verified=False), model


def opened(bundle: Bundle) -> LanguageModel:
    return open_model(bundle.path, bundle.manifest, "evaluator")


def generate_theirs(model: Any, prompt_ids: list[int], tokens: int) -> list[int]:
    made = model.generate(torch.tensor([prompt_ids]), max_new_tokens=tokens, do_sample=False, pad_token_id=0)
    return list(made[0, len(prompt_ids) :].tolist())


@pytest.mark.parametrize("text", ["In the beginning", "é you 🙂 and the earth was without form, and void"])
@torch.no_grad()
def test_greedy_is_transformers_greedy(built: tuple[Bundle, Any], text: str) -> None:
    bundle, theirs = built
    result = answer(opened(bundle), text, raw=True, max_tokens=30)
    pieces = list(result)
    tokenizer = AutoTokenizer.from_pretrained(bundle.path)
    prompt_ids = tokenizer(text).input_ids
    assert result.prompt_tokens == len(prompt_ids)
    assert result.token_ids == generate_theirs(theirs, prompt_ids, 30)
    assert "".join(pieces) == result.text == tokenizer.decode(result.token_ids, skip_special_tokens=True)
    assert result.finish_reason == "length"


@torch.no_grad()
def test_a_chat_says_what_a_model_without_a_cache_says(built: tuple[Bundle, Any]) -> None:
    bundle, theirs = built
    chat = Chat(opened(bundle), max_tokens=6)
    tokenizer = AutoTokenizer.from_pretrained(bundle.path)
    for line in ("hi", "and then?"):
        prompt_ids = tokenizer.apply_chat_template(
            [*chat.messages, {"role": "user", "content": line}], add_generation_prompt=True, return_dict=False
        )
        if len(prompt_ids) > CONTEXT:
            break
        result = chat.reply(line)
        list(result)
        assert result.token_ids == generate_theirs(theirs, prompt_ids, len(result.token_ids))


@torch.no_grad()
def test_generation_goes_on_to_the_last_position_of_the_context(built: tuple[Bundle, Any]) -> None:
    bundle, theirs = built
    model = opened(bundle)
    prompt_ids = model.tokenizer.encode("the heaven and the earth")
    result = answer(model, "the heaven and the earth", raw=True, max_tokens=1000)
    list(result)
    assert result.finish_reason == "length"
    assert len(prompt_ids) + len(result.token_ids) == CONTEXT + 1
    assert result.token_ids == generate_theirs(theirs, prompt_ids, len(result.token_ids))


@torch.no_grad()
def test_a_rollback_gives_what_a_fresh_session_gives(built: tuple[Bundle, Any]) -> None:
    bundle, theirs = built
    session = opened(bundle).session
    base = [3 + (7 * i) % 250 for i in range(40)]
    for token_ids in (base, [*base[:-3], 9], [*base[:-4], 11, 12], [*base[:20], 5], base):
        logits = theirs(torch.tensor([token_ids])).logits[0, -1]
        torch.testing.assert_close(session.feed(token_ids), logits, rtol=0, atol=2e-4)


def test_only_the_functions_that_are_needed_are_called(
    built: tuple[Bundle, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, _ = built
    calls: list[str] = []
    call = SavedProgram.call

    def count(self: SavedProgram, function: str, inputs: Any) -> Any:
        calls.append(function)
        return call(self, function, inputs)

    monkeypatch.setattr(SavedProgram, "call", count)
    list(answer(opened(bundle), "a" * 17, raw=True, max_tokens=3))
    assert calls == ["prefill", "prefill", "decode", "decode", "decode"]


def test_a_draft_guesses_in_every_turn_of_a_chat(gemma4_tiny_bundle: Path) -> None:
    """The second turn goes on from states that the first one's guesses were written into and taken back from."""
    said, accepted = [], []
    for draft in (False, True):
        bundle = Bundle.open(gemma4_tiny_bundle)
        chat = Chat(open_model(bundle.path, bundle.manifest, "evaluator"), max_tokens=12, draft=draft)
        for line in ("In the beginning", "And the earth"):
            turn = chat.reply(line)
            said.append("".join(turn))
            accepted.append(turn.accepted)
    assert said[:2] == said[2:]
    assert accepted[:2] == [0, 0]
    assert accepted[3] > 0
