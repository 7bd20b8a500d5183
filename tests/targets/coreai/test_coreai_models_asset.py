"""An asset for Apple's runner of coreai-models: its signatures, and the runner's own calls by Apple's runtime."""

from pathlib import Path
from typing import ClassVar, cast

import pytest
import torch
from hosted_assets import CHECKPOINT, TOKENS, built, hosted_as, settings_of

from coreai_recipes.bundle import Bundle
from coreai_recipes.checkpoint import open_checkpoint
from coreai_recipes.errors import BundleError
from coreai_recipes.export.cache import FragmentCache
from coreai_recipes.hosts.coreai_models import TOKENIZER, Settings, functions_of
from coreai_recipes.hosts.logits import best
from coreai_recipes.manifest.schema import Manifest
from coreai_recipes.recipe import load_recipe, load_resolved
from coreai_recipes.recipe.host_form import static_form
from coreai_recipes.running.coreai import CoreAIProgram
from coreai_recipes.running.coreai_models import Player
from coreai_recipes.running.program import SavedProgram
from coreai_recipes.running.session import Session
from coreai_recipes.verification.figures import psnr
from coreai_recipes.verification.run import run_stages

pytestmark = pytest.mark.xdist_group(__name__)

HOSTED = hosted_as("coreai-models")


def test_the_runtime_sees_the_functions_that_the_runner_calls(hosted: Path, engine: CoreAIProgram) -> None:
    form = static_form(load_recipe("tiny-llama", HOSTED))
    for name, (_, inputs, outputs) in functions_of(form).items():
        assert (engine.signatures[name]["inputs"], engine.signatures[name]["outputs"]) == (inputs, outputs)
        cache = ("float16", (4, 2, 96, 32))
        attends = name.startswith(("extend", "prompt"))
        assert engine.signatures[name]["states"] == ({"key_cache": cache, "value_cache": cache} if attends else {})
    for file in ("tokenizer.json", "tokenizer_config.json"):
        assert (hosted / TOKENIZER / file).read_bytes() == (hosted / file).read_bytes()
    Bundle.open(hosted).check_files()


@pytest.mark.parametrize(
    ("length", "calls"),
    [
        (1, [("extend_96_1", 0), ("extend_96_1", 1)]),
        (5, [("extend_96_16", 0), ("extend_96_1", 5)]),
        (17, [("prompt_opt_96_16", 0), ("extend_96_1", 16), ("extend_96_1", 17)]),
        (40, [("prompt_opt_96_16", 0), ("prompt_opt_96_16", 16), ("extend_96_16", 32), ("extend_96_1", 40)]),
    ],
)
def test_the_runner_gives_the_tokens_of_our_session(
    hosted: Path,
    engine: CoreAIProgram,
    program: SavedProgram,
    described: Manifest,
    length: int,
    calls: list[tuple[str, int]],
) -> None:
    player, session = Player(engine, settings_of(hosted), padding=length), Session(program, described)
    text = TOKENS[:length]
    for _ in range(2):
        text.append(best(session.feed(text)))
    assert player.generate(TOKENS[:length], 2, ()) == text[length:]
    assert player.calls == calls


def test_a_text_that_goes_on_is_written_from_where_its_batch_begins(hosted: Path, engine: CoreAIProgram) -> None:
    """5 more tokens at 22 are a batch from 16 on: what was written there is written again, and is the same."""
    player = Player(engine, settings_of(hosted))
    player.next_logits(TOKENS[:22])
    ours = player.next_logits(TOKENS[:27])
    assert player.calls[-1] == ("extend_96_16", 16)
    assert torch.equal(ours, Player(engine, settings_of(hosted)).next_logits(TOKENS[:27]))


def test_the_runners_calls_give_transformers_logits(hosted: Path) -> None:
    """Of the float32 twin, over prompts, batches that are not full, and single tokens."""
    from transformers import AutoModelForCausalLM

    reference = AutoModelForCausalLM.from_pretrained(CHECKPOINT, dtype=torch.float32)
    player = Player(CoreAIProgram(hosted / "model.aimodel", widened=True), settings_of(hosted), padding=3)
    with torch.inference_mode():
        theirs = reference(torch.tensor([TOKENS[:45]])).logits[0]
    for length in (38, 39, 45):
        assert psnr(theirs[length - 1], player.next_logits(TOKENS[:length])) > 110
    extends = ["extend_96_16", "extend_96_1", "extend_96_16"]
    assert [name for name, _ in player.calls] == ["prompt_opt_96_16", "prompt_opt_96_16", *extends]


def test_verify_runs_it_and_fills_calls_up(tmp_path: Path, cache: FragmentCache) -> None:
    """Compressed, and held to its dense twin by calls that its host makes up."""
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


def test_a_prompt_that_would_be_written_beyond_the_context_is_fed_token_by_token(
    program: SavedProgram, described: Manifest
) -> None:
    """16 rows from 90 on do not go into 96."""
    session, slower = Session(program, described), Session(program, described)
    session.feed(TOKENS[:90])
    ours = session.feed(TOKENS[:95])
    slower.resume(TOKENS[:90], 90)
    for length in range(91, 96):
        theirs = slower.feed(TOKENS[:length])
    assert torch.equal(ours, theirs)


def test_an_asset_for_other_hosts_is_not_taken(hosted: Path, engine: CoreAIProgram) -> None:
    class Other:
        signatures: ClassVar = {"decode": {"inputs": {}, "outputs": {}, "states": {}}}

    with pytest.raises(ValueError, match="the runner takes it for no static asset"):
        Player(cast(CoreAIProgram, Other()), settings_of(hosted))
    with pytest.raises(ValueError, match="no function has a context of 64"):
        Player(engine, Settings("model.aimodel", 64, 512))


def test_a_call_beyond_the_context_is_refused(program: SavedProgram) -> None:
    inputs = {"input_ids": torch.tensor([[5]], dtype=torch.int32), "position": torch.tensor([96], dtype=torch.int32)}
    with pytest.raises(BundleError, match="1 tokens at position 96; the states hold positions 0 to 95"):
        program.call("decode", inputs)
