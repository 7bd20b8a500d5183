"""The front of an asset for Apple's runner: a layer sees what the host's mask shows, less what its window hides."""

from pathlib import Path

import pytest
import torch

from coreai_recipes.decoder.model import build_decoder
from coreai_recipes.decoder.states import state_specs
from coreai_recipes.export.coreai_models_program import end_fragment, static_front
from coreai_recipes.hosts import coreai_models as theirs
from coreai_recipes.hosts.logits import Pieces
from coreai_recipes.primitives.cache import HIDDEN
from coreai_recipes.recipe import Recipe, load_recipe
from coreai_recipes.running.coreai_models import own_logits, runner_inputs
from coreai_recipes.storage.chunks import chunks_of

CONTEXT, PREFILL, WINDOW = 64, 16, 20
WINDOWED = f"""\
extends: tiny-llama
name: windowed
model:
  kinds:
    near: {{like: full, attention: {{kind: sliding, window: {WINDOW}}}}}
  layers: [near, full, near]
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    path = tmp_path / "windowed.yaml"
    path.write_text(WINDOWED)
    sizes = f"export.context={CONTEXT}", f"export.functions.prefill={PREFILL}"
    return load_recipe(path, ["export.format=coreai", "export.host=coreai-models", *sizes])


def test_all_kinds_have_full_caches_in_two_states(recipe: Recipe) -> None:
    specs = state_specs(recipe).values()
    assert {(spec.kind, spec.first, spec.layers) for spec in specs} == {("near", 0, 2), ("full", 2, 1)}
    assert {(spec.keys, spec.values, spec.shape) for spec in specs} == {(*theirs.CACHES, (3, 2, CONTEXT, 32))}


@pytest.mark.parametrize(("position", "count", "query"), [(0, PREFILL, PREFILL), (32, 5, PREFILL), (37, 1, 1)])
def test_a_layer_sees_its_window_of_what_the_host_shows(recipe: Recipe, position: int, count: int, query: int) -> None:
    decoder = build_decoder(recipe)
    (chunk,) = chunks_of([decoder])
    call = decoder.call("decode" if query == 1 else "prefill")
    fragment = static_front(decoder, call, chunk)
    given = runner_inputs(position, count, query, CONTEXT)
    given[theirs.EMBEDDED] = torch.zeros(1, query, 1, recipe.model.hidden_size)
    found = dict(zip(fragment.outputs, fragment.module(*(given[name] for name in fragment.inputs)), strict=True))
    keys, queries = torch.arange(CONTEXT)[:, None], torch.arange(position, position + count)
    for kind, hidden in (("full", keys > queries), ("near", (keys > queries) | (keys <= queries - WINDOW))):
        seen = found[f"mask_{kind}"].reshape(CONTEXT, query)
        assert torch.equal(seen[:, :count] == HIDDEN, hidden)
        assert (seen[:, count:] == HIDDEN).all()
        assert torch.equal(seen[:, :count][~hidden], torch.zeros(int((~hidden).sum()), dtype=seen.dtype))


def test_the_module_sees_the_same_window_as_without_a_host(recipe: Recipe) -> None:
    """What verification compares with transformers."""
    plain = recipe.model_copy(update={"export": recipe.export.model_copy(update={"host": None})})
    tokens, answers = (torch.arange(40, dtype=torch.int32) * 37 % 512)[None], []
    for each in (recipe, plain):
        torch.manual_seed(0)
        decoder = build_decoder(each).to_empty(device="cpu")
        for parameter in decoder.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        with torch.no_grad():
            states = decoder.make_states()
            calls = [decoder(tokens[:, :32], 0, 32, states)]
            calls += [decoder(tokens[:, at : at + 1], at, 1, states) for at in range(32, 40)]
            answers.append(torch.cat([*calls, decoder(tokens)], 1))
    ours, theirs_alone = answers
    torch.testing.assert_close(ours, theirs_alone)
    torch.testing.assert_close(ours[:, :40], ours[:, 40:])


def test_logits_lose_the_padding_of_their_pieces_and_are_given_it_again() -> None:
    """The runner takes a token's logits from a multiple of the vocabulary's size on."""
    vocab_size, tokens = 33_000, 3
    pieces = Pieces(vocab_size)
    logits = torch.randn(pieces.shape(tokens))
    flat = end_fragment(tokens, vocab_size).module(logits)
    assert flat.shape == (1, 1, tokens, vocab_size)
    whole = logits.view(tokens, -1)[:, :vocab_size]
    assert torch.equal(flat.reshape(-1)[vocab_size : 2 * vocab_size], whole[1])
    again = own_logits(flat[0, 0, 1], vocab_size)
    assert again.shape == pieces.shape(1)
    assert torch.equal(again.view(-1)[:vocab_size], whole[1])
