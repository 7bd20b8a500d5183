"""A draft beside a target whose layers carry a state: what the target rejects leaves no trace in its saved package."""

import copy
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_bundle import byte_level_tokenizer, write_tokenizer
from safetensors.torch import save_file
from small_delta import save_delta, small_delta

from coreai_recipes import build
from coreai_recipes.decoder.draft import Draft
from coreai_recipes.decoder.filling import checkpoint_shapes
from coreai_recipes.generate import open_model
from coreai_recipes.recipe import Recipe
from coreai_recipes.running.speculation import Speculator
from coreai_recipes.weights.names import load_names

PROMPT = [(37 * index + 5) % 101 for index in range(21)]
ROWS, TOKENS = 12, 18


def with_draft(recipe: Recipe) -> Recipe:
    """The recipe with a draft of one layer, which reads the cache of its layer of attention."""
    data = recipe.model_dump(exclude_none=True)
    kind = copy.deepcopy(data["model"]["kinds"]["full"])
    kind["attention"] |= {"shares_kv_with": "full", "output_gate": None}
    data["draft"] = {
        "reference": {"model_type": "gemma4_assistant"},
        "vocab_size": recipe.model.vocab_size,
        "hidden_size": 36,
        "norm": {"kind": "rms", "eps": 1e-5},
        "placement": "sandwich",
        "layer_scalar": True,
        "kinds": {"full": kind},
        "layers": ["full"],
        "weights": {"names": "gemma4_assistant"},
    }
    return Recipe.model_validate(data)


def save_draft(recipe: Recipe, folder: Path) -> Path:
    """Random tensors of the draft, under the names of its table."""
    folder.mkdir()
    table, generator = load_names("gemma4_assistant"), torch.Generator().manual_seed(5)
    with torch.device("meta"):
        shapes = checkpoint_shapes(Draft(recipe))
    tensors = {}
    for name, shape in shapes.items():
        source = table.find(name, "model.")
        assert source is not None
        tensors[source.tensor] = torch.randn(shape, generator=generator) * (shape[-1] ** -0.5 if len(shape) > 1 else 1)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text('{"model_type": "gemma4_assistant"}')
    return folder


@pytest.fixture(scope="module")
def theirs() -> Any:
    return small_delta(byte_level_tokenizer().get_vocab_size())


def greedy(theirs: Any, prompt: list[int], tokens: int) -> list[int]:
    """What transformers picks, by whole sequences."""
    text = list(prompt)
    with torch.no_grad():
        for _ in range(tokens):
            text.append(int(theirs(torch.tensor([text]), use_cache=False).logits[0, -1].argmax()))
    return text[len(prompt) :]


def test_a_draft_on_the_gated_delta_rule_changes_no_token(
    theirs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rounds in which the draft's own guess stands, as it is mostly rejected, or some of the target's own tokens before
    it, across several commits; then another text from within what the rows hold."""
    export = {"functions": {"prefill": 8, "score": 5}, "buffer": ROWS}
    plain, _ = save_delta(theirs, tmp_path / "checkpoint", **export)
    write_tokenizer(tmp_path / "checkpoint", eos_token=None)
    recipe = with_draft(plain)
    draft = save_draft(recipe, tmp_path / "draft")
    bundle = build(recipe, tmp_path / "checkpoint", tmp_path / "dist", draft=draft, verified=False)
    session = open_model(bundle.path, bundle.manifest, "evaluator").session
    guess, chance, known = Speculator._draft, random.Random(3), dict[tuple[int, ...], list[int]]()

    def sometimes_right(self: Speculator, text: list[int], *given: Any) -> list[int]:
        drafted = guess(self, text, *given)
        right = next(answer for prompt, answer in known.items() if tuple(text[: len(prompt)]) == prompt)
        told = right[len(text) - len(PROMPT) :][: chance.randrange(len(drafted) + 1)]
        return [*told, *drafted[len(told) :]]

    monkeypatch.setattr(Speculator, "_draft", sometimes_right)
    accepted = set()
    for prompt in (PROMPT, [*PROMPT[:-1], 90]):
        known.clear()
        known[tuple(prompt)] = greedy(theirs, prompt, TOKENS)
        rounds = list(session.speculate(prompt, TOKENS, lambda logits: int(logits.argmax())))
        assert [token for each in rounds for token in each.tokens] == known[tuple(prompt)]
        accepted |= {each.accepted for each in rounds if each.accepted < len(each.drafted)}
    assert 0 in accepted
    assert len(accepted) > 2
