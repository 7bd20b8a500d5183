"""An asset for Apple's runner of coreai-models on macOS: its signature, and the runner's calls by Apple's runtime."""

from pathlib import Path

import pytest
import torch
from hosted_assets import CHECKPOINT, TOKENS, built, hosted_as, settings_of

from coreai_recipes.bundle import Bundle
from coreai_recipes.checkpoint import open_checkpoint
from coreai_recipes.errors import BundleError
from coreai_recipes.export.cache import FragmentCache
from coreai_recipes.hosts import coreai_models_dynamic as theirs
from coreai_recipes.hosts.coreai_models import TOKENIZER, Settings
from coreai_recipes.hosts.logits import best
from coreai_recipes.manifest.schema import Manifest
from coreai_recipes.recipe import load_resolved
from coreai_recipes.running.coreai import CoreAIProgram
from coreai_recipes.running.coreai_models_dynamic import Player
from coreai_recipes.running.program import SavedProgram
from coreai_recipes.running.session import Session
from coreai_recipes.verification.figures import psnr
from coreai_recipes.verification.run import run_stages

pytestmark = pytest.mark.xdist_group(__name__)

HOSTED = hosted_as("coreai-models-dynamic")


@pytest.fixture
def short_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the runner would have them of a longer context: they are lengthened at 16, 32 and 64 positions."""
    monkeypatch.setattr(theirs, "FIRST_ROWS", 16)


def test_the_runtime_sees_two_inputs_logits_and_caches_of_any_length(hosted: Path, engine: CoreAIProgram) -> None:
    """Five axes, of which the fourth is open: by that the runner knows that it may lengthen them."""
    cache = ("float16", (4, 1, 2, -1, 32))
    assert engine.signatures["main"] == {
        "inputs": {"input_ids": ("int32", (1, -1)), "position_ids": ("int32", (1, -1))},
        "outputs": {"logits": ("float16", (1, -1, 512))},
        "states": {"keyCache": cache, "valueCache": cache},
    }
    for file in ("tokenizer.json", "tokenizer_config.json"):
        assert (hosted / TOKENIZER / file).read_bytes() == (hosted / file).read_bytes()
    Bundle.open(hosted).check_files()
    with pytest.raises(ValueError, match="the rows of keyCache are the host's to choose"):
        engine.make_state()


@pytest.mark.parametrize(("length", "capacity"), [(1, 16), (15, 32), (40, 64)])
def test_the_runner_gives_the_tokens_of_our_session(
    hosted: Path,
    engine: CoreAIProgram,
    program: SavedProgram,
    described: Manifest,
    length: int,
    capacity: int,
    short_caches: None,
) -> None:
    player, session = Player(engine, settings_of(hosted)), Session(program, described)
    text = TOKENS[:length]
    for _ in range(3):
        text.append(best(session.feed(text)))
    assert player.generate(TOKENS[:length], 3, ()) == text[length:]
    assert player.calls == [(0, length), (length, 1), (length + 1, 1)]
    assert player.capacity == capacity


def test_an_answer_goes_on_from_what_is_written_and_another_text_begins_anew(
    hosted: Path, engine: CoreAIProgram
) -> None:
    player = Player(engine, settings_of(hosted))
    answer = player.generate(TOKENS[:20], 2, ())
    player.generate([*TOKENS[:20], *answer, *TOKENS[50:53]], 1, ())
    assert player.calls == [(0, 20), (20, 1), (21, 4)]
    player.generate(TOKENS[:20], 1, ())
    assert player.calls[3:] == [(19, 1)]
    player.generate(TOKENS[1:9], 1, ())
    assert player.calls[4:] == [(0, 8)]


def test_a_long_prompt_is_taken_in_batches(
    hosted: Path, engine: CoreAIProgram, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(theirs, "WHOLE_PROMPT", 32)
    monkeypatch.setattr(theirs, "BATCH", 24)
    batches = Player(engine, settings_of(hosted))
    ours = batches.next_logits(TOKENS[:60])
    assert batches.calls == [(0, 24), (24, 24), (48, 12)]
    whole = Player(engine, settings_of(hosted))
    whole.next_logits(TOKENS[:32])
    assert psnr(ours, whole.next_logits(TOKENS[:60])) > 50


@pytest.mark.parametrize("rotary_op", ["plain", "composite"])
def test_the_runners_calls_give_transformers_logits(
    tmp_path: Path, cache: FragmentCache, rotary_op: str, short_caches: None
) -> None:
    """Of the float32 twin, over calls of several lengths and caches that grow."""
    from transformers import AutoModelForCausalLM

    reference = AutoModelForCausalLM.from_pretrained(CHECKPOINT, dtype=torch.float32)
    asset = built(tmp_path, cache, [*HOSTED, f"export.rotary_op={rotary_op}"])
    player = Player(CoreAIProgram(asset, widened=True), Settings(asset.name, 96, 512))
    with torch.inference_mode():
        theirs = reference(torch.tensor([TOKENS])).logits[0]
    for length in (7, 8, 38, 39, 96):
        assert psnr(theirs[length - 1], player.next_logits(TOKENS[:length])) > 110
    assert player.calls == [(0, 7), (7, 1), (8, 30), (38, 1), (39, 57)]
    assert player.capacity == 96
    with pytest.raises(ValueError, match="97 positions, and the context has 96"):
        player.next_logits([*TOKENS, 0])


def test_verify_runs_it_with_calls_of_fewer_tokens(tmp_path: Path, cache: FragmentCache) -> None:
    """Compressed, and held to its dense twin by calls of any length."""
    stored = ["compress.default.kind=palettize", "compress.default.bits=3", "compress.calibration=null"]
    recipe, sources = load_resolved("tiny-llama", [*HOSTED, *stored]).recipe, {"model": open_checkpoint(CHECKPOINT)}
    asset = built(tmp_path, cache, [*HOSTED, *stored])
    stages = ["package", "decompressed"]
    package, dense = run_stages(recipe, sources, asset, stages=stages, runtime="coreai", tokens=TOKENS[:60]).stages
    assert package.passed, package.detail
    assert package.psnr_db > 120
    assert "of 16" in package.detail["calls"]
    assert dense.passed, dense.detail
    assert dense.detail["calls"] == "prefill 16, prefill 9 of 16, 1 x decode"
    assert dense.detail["weights_compared"] > 0


def test_a_call_beyond_the_context_is_refused(program: SavedProgram) -> None:
    """By the host: the runtime would say something about an operation."""
    given = {
        "input_ids": torch.zeros(1, 16, dtype=torch.int32),
        "position": torch.tensor([90]),
        "count": torch.tensor([7]),
    }
    with pytest.raises(BundleError, match="7 tokens at position 90; the states hold positions 0 to 95"):
        program.call("prefill", given)
