"""What comes into a draft's matrices on a text, for all rounds at once, and a draft that is fitted to it."""

from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch

from coreai_recipes.calibration.calibrating import calibrate
from coreai_recipes.calibration.gathering import Gathering
from coreai_recipes.calibration.passing import TextPass
from coreai_recipes.calibration.statistics import Moments
from coreai_recipes.calibration.threads import threads
from coreai_recipes.checkpoint.base import Checkpoint
from coreai_recipes.checkpoint.open import open_checkpoint
from coreai_recipes.decoder.draft import Draft
from coreai_recipes.decoder.filling import bind_weights, fill_from
from coreai_recipes.decoder.model import build_decoder
from coreai_recipes.primitives.layer import Form
from coreai_recipes.recipe import Recipe, load_recipe
from coreai_recipes.storage.compression import is_matrix
from coreai_recipes.storage.parameters import stored_parameters

pytestmark = pytest.mark.usefixtures("one_thread")

FOLDED = Form(folded="contiguous")
RULES = '[{match: "*", kind: float16}, {match: draft.layers.0.*, kind: palettize, bits: 3}]'


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return load_recipe("gemma4-tiny", ["compress.default={kind: palettize, bits: 3}", f"compress.rules={RULES}"])


@pytest.fixture(scope="module")
def sources() -> tuple[Checkpoint, Checkpoint]:
    return open_checkpoint("embedded:gemma4-tiny"), open_checkpoint("embedded:gemma4-tiny/draft")


@pytest.fixture(scope="module")
def windows(recipe: Recipe) -> list[list[int]]:
    draw = torch.Generator().manual_seed(0)
    return torch.randint(recipe.model.vocab_size, (1, 40), generator=draw).tolist()  # beyond the window of 32


def in_order(functions: Iterable[Callable[[], None]]) -> None:
    for function in functions:
        function()


def test_a_draft_is_given_what_rounds_behind_each_token_give_it(
    recipe: Recipe, sources: tuple[Checkpoint, Checkpoint], windows: list[list[int]]
) -> None:
    with threads() as own:
        *_, ours = TextPass(recipe, sources[0], windows, own, sources[1]).run()
    draft = Draft.build(recipe, FOLDED)
    names = {id(p): n for n, p in draft.named_parameters() if is_matrix(n, tuple(p.shape))}
    assert set(ours.statistics) == {f"draft.{name}" for name in names.values()}
    decoder = build_decoder(recipe, FOLDED)
    fill_from(decoder, bind_weights(decoder, sources[0]))
    fill_from(draft, bind_weights(draft, sources[1]))
    names = {id(p): n for n, p in draft.named_parameters() if n in names.values()}
    steps, ends = 4, range(1, len(windows[0]) - 3)  # `score: 5`
    given: dict[str, list[torch.Tensor]] = {}
    states, of_window = decoder.make_states(), windows[0]
    with torch.inference_mode():
        for end in ends:
            x = decoder.hidden(torch.tensor([of_window[end - 1 : end]]), end - 1, 1, states)
            hidden = decoder.norm(x).squeeze(2).transpose(1, 2)
            for step in range(steps):
                embedded = decoder.embedding(torch.tensor([[of_window[end + step]]]))
                with Gathering(names) as found:
                    _, hidden = draft(embedded, hidden, end, dict.fromkeys(draft.owners, end), states)
                for name, first in found.taken.items():
                    given.setdefault(name, []).append(found.inputs[first])
    for name, parts in given.items():
        moments = Moments(len(parts[0]))
        for step in range(steps):  # tokens are capped by the median of what is added at once
            moments.add(torch.cat(parts[step::steps], 1), in_order)
        theirs, statistics = moments.hessian(), ours.statistics[f"draft.{name}"]
        assert statistics.tokens == steps * len(ends)
        assert (statistics.hessian - theirs).abs().max() < 1e-4 * theirs.abs().max(), name


def test_a_drafts_matrices_are_fitted_where_its_checkpoint_is_given(
    recipe: Recipe, sources: tuple[Checkpoint, Checkpoint], windows: list[list[int]], tmp_path: Path
) -> None:
    target, draft = sources
    found = calibrate(recipe, target, windows, tmp_path, draft=draft)
    matrices = {"attention.q", "attention.o", "mlp.gate", "mlp.up", "mlp.down"}
    assert set(found) == {f"draft.layers.0.{name}.weight" for name in matrices}
    stored = stored_parameters([Draft.build(recipe)])
    assert all(stored.compression.is_calibrated(name, each.shape) for name, each in found.items())
    tuned = load_recipe("gemma4-tiny", ["compress.default={kind: palettize, bits: 3}", "compress.tune=1"])
    stored = stored_parameters([Draft.build(tuned)])
    assert not stored.compression.is_calibrated("draft.norm.weight", stored.shapes["draft.norm.weight"])
