"""Packages of the gated delta rule that keep rows since their last commit, through sessions, against transformers."""

from pathlib import Path
from typing import Any

import pytest
import torch
from fake_bundle import byte_level_tokenizer, write_tokenizer
from figures import psnr
from small_delta import save_delta, small_delta
from torch import Tensor

from coreai_recipes import Bundle, build
from coreai_recipes.evaluate import Program
from coreai_recipes.generate import open_model
from coreai_recipes.generate.prompt_cache import PromptCache
from coreai_recipes.running.buffer import RowBuffer
from coreai_recipes.running.chain import chained
from coreai_recipes.running.program import SavedProgram

PROMPT = [(37 * index + 5) % 101 for index in range(21)]
ROWS = 12


@pytest.fixture(scope="module")
def theirs() -> Any:
    return small_delta(byte_level_tokenizer().get_vocab_size())


@pytest.fixture(scope="module")
def built(theirs: Any, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """In two packages: each commits what its own layers carry, states of two float16 each."""
    folder = tmp_path_factory.mktemp("buffered")
    export = {"functions": {"prefill": 8, "score": 4}, "buffer": ROWS, "chunks": 2, "recurrent_state": "two_float16"}
    recipe, _ = save_delta(theirs, folder / "checkpoint", **export)
    write_tokenizer(folder / "checkpoint", eos_token=None)
    return build(recipe, folder / "checkpoint", folder / "dist", verified=False)


def whole(theirs: Any, token_ids: list[int]) -> Tensor:
    with torch.no_grad():
        logits: Tensor = theirs(torch.tensor([token_ids]), use_cache=False).logits[0, -1]
    return logits


def test_the_manifest_says_what_is_committed_and_which_rows_stand_behind_it(built: Bundle) -> None:
    carried, functions = built.described.carried or {}, built.described.functions
    assert {tensor.rollback for tensor in carried.values()} == {"commit"}
    rows = {name: tensor for name, tensor in carried.items() if tensor.role == "rows"}
    states = carried.keys() - rows.keys()
    assert {tensor.shape[1] for tensor in rows.values()} == {ROWS}
    assert functions["commit"].inputs.keys() == {"base", "position", *carried}
    assert functions["commit"].outputs.keys() == {f"new_{name}" for name in states}
    for name, tokens in (("decode", 1), ("prefill", 8), ("score", 4)):
        assert carried.keys() | {"base"} <= functions[name].inputs.keys()
        given = {output for output in functions[name].outputs if output.startswith("new_")}
        assert given == {f"new_{each}" for each in rows}
        assert {functions[name].outputs[each].shape[1] for each in given} == {tokens}


def test_a_conversation_says_what_whole_sequences_say(built: Bundle, theirs: Any) -> None:
    """A prompt in padded calls, its answer token by token beyond what the rows hold, answers that are changed anywhere
    in it, the prompt again, another prompt."""
    session = open_model(built.path, built.manifest, "evaluator").session
    answer = [*PROMPT, *range(3, 23)]
    texts = [answer[:end] for end in range(22, 42, 3)]
    texts += [[*answer[:36], 90, 91], [*answer[:35], 92], [*answer[:24], 90], PROMPT, [*PROMPT[:9], 60, 61], [7]]
    assert min(psnr(whole(theirs, text), session.feed(text)) for text in texts) >= 90


def test_a_prompt_cache_goes_on_from_what_was_committed(built: Bundle, theirs: Any, tmp_path: Path) -> None:
    first = open_model(built.path, built.manifest, "evaluator")
    first.session.feed([*PROMPT, 3])
    PromptCache(tmp_path / "kept", first).save()
    second = open_model(built.path, built.manifest, "evaluator")
    PromptCache(tmp_path / "kept", second).restore()
    assert second.session.token_ids == (*PROMPT, 3)
    text = [*PROMPT, 3, 60, 61]
    assert psnr(whole(theirs, text), second.session.feed(text)) >= 90


@pytest.mark.parametrize(
    "other", [[*PROMPT[:3], *range(50, 68)], [7, 8], [*range(40, 80)]], ids=["alike", "short", "long"]
)
def test_a_text_that_was_set_aside_goes_on_whatever_the_rows_held_meanwhile(
    built: Bundle, theirs: Any, other: list[int]
) -> None:
    session = open_model(built.path, built.manifest, "evaluator").session
    session.feed(PROMPT)
    kept = session.keep()
    assert kept is not None
    session.feed(other)
    session.restore(kept)
    assert session.count_reusable([*PROMPT, 60]) == len(PROMPT)
    for text in ([*PROMPT, 60], [*PROMPT, 60, 61, 62], [*other[:2], 9]):
        assert psnr(whole(theirs, text), session.feed(text)) >= 90


def test_a_float16_program_keeps_what_the_first_half_of_a_state_has_lost(built: Bundle) -> None:
    """No pass of the conversion may take a value that was rounded for the value itself: what is lost would be 0."""
    manifest = built.described
    programs = [Program(built.path / each.file).at("rounded", ()) for each in manifest.programs]
    carried = {name: tensor.shape for name, tensor in (manifest.carried or {}).items()}
    rows = {name: carried.pop(name) for name in manifest.buffers}
    engine = chained(programs, [each.functions for each in manifest.programs])
    program = SavedProgram(engine, None, carried, buffer=RowBuffer(rows))
    for position in range(ROWS + 1):
        inputs = {"input_ids": torch.tensor([[PROMPT[position]]]), "position": torch.tensor([position])}
        program.call("decode", {name: tensor.to(torch.int32) for name, tensor in inputs.items()})
    assert program.base == ROWS
    for name, low in ((name, low) for name, low in program.carried.items() if "_low_" in name):
        high = program.carried[name.replace("_low_", "_")]
        assert (low != 0).float().mean() > 0.5
        assert bool((low.abs() <= high.abs() * 2**-11 + 2**-24).all())
