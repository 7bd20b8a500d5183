"""What a model loses by its states alone as a text grows: after 500 tokens and 2,000, one token a call.

Each call rounds the states of recurrences to float16, so a token a call is the most that they can lose.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

from coreai_recipes.checkpoint.base import Checkpoint
from coreai_recipes.verification.calls import FunctionCall, run_call
from coreai_recipes.verification.figures import psnr, snr_min
from coreai_recipes.verification.held_out import TEXTS
from coreai_recipes.verification.report import number
from coreai_recipes.verification.runtime import open_program
from coreai_recipes.verification.streamed import StreamedDecoder
from coreai_recipes.verification.tokens import PASSAGE, encode_texts, random_tokens

if TYPE_CHECKING:
    from coreai_recipes.verification.subject import Subject

LENGTHS = (500, 2000)
LAST = 64  # tokens before each length whose logits are compared
# multiplications that nobody needs to ask for: as many as the stage gives its own decode steps
PRODUCTS = 20e9


def measure_lengths(subject: "Subject", tell: str) -> dict[str, Any] | None:
    """The package in float32 but for its states, against our Decoder with the same weights, at each of `LENGTHS` that
    fits in the context; None where none does. Lengths that take long are measured where the subject says so."""
    within = [length for length in LENGTHS if length <= subject.recipe.export.context]
    numbers = subject.float32_bytes // 4
    measured = [length for length in within if subject.all_lengths or numbers * length <= PRODUCTS]
    found: dict[str, Any] = {"lengths": list(_measure(subject, measured, tell))} if measured else {}
    if len(measured) < len(within):
        found["not_measured"] = within[len(measured) :]
    return found or None


def _measure(subject: "Subject", lengths: list[int], tell: str) -> Iterator[dict[str, Any]]:
    total = lengths[-1]
    ids = long_text(subject.weights, subject.recipe.model.vocab_size, total)
    ref = StreamedDecoder(subject.recipe, subject.stored_weights).run(ids, lambda index, hidden: None)
    program = open_program(subject, "float32", float16_states=True)
    kept: dict[int, torch.Tensor] = {}
    for position in range(total):
        found = run_call(program, ids, FunctionCall("decode", position, 1, 1), set(), subject.recipe)
        if any(length - LAST <= position < length for length in lengths):
            kept[position] = found.logits
        subject.progress(tell, position + 1, total)
    for length in lengths:
        rows = range(length - LAST, length)
        theirs, ours = ref[rows.start : rows.stop], torch.cat([kept[row] for row in rows])
        yield {"tokens": length, "psnr_db": number(psnr(theirs, ours)), "snr_min_db": number(snr_min(theirs, ours))}


def long_text(checkpoint: Checkpoint, vocab_size: int, length: int) -> tuple[int, ...]:
    """Our texts one after another, as often as needed; random tokens where no tokenizer fits."""
    encoded = encode_texts(checkpoint, (*TEXTS, PASSAGE))
    if encoded is None or not all(encoded) or max(map(max, encoded)) >= vocab_size:
        return random_tokens(vocab_size, length).sequence
    whole = [token for ids in encoded for token in ids]
    return tuple((whole * -(-length // len(whole)))[:length])
