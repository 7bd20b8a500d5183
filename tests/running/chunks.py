"""A bundle's answers to the same calls, for bundles that must say the same to the bit."""

from collections.abc import Iterator
from unittest.mock import patch

import torch
from torch import Tensor

from coreai_recipes.bundle.opened import Bundle
from coreai_recipes.evaluate import Program
from coreai_recipes.evaluate.precision import Precision
from coreai_recipes.running.program import SavedProgram, open_program
from coreai_recipes.running.session import Session

PRECISIONS: tuple[Precision, ...] = ("float32", "rounded", "strict")
PROMPT = 37  # tokens: more than a prefill takes, and padding


def in_precision(bundle: Bundle, precision: Precision) -> SavedProgram:
    """The bundle's program as the evaluator runs it in that precision."""
    with patch("coreai_recipes.running.program.open_engine", lambda package, *_: Program(package, precision)):
        return open_program(bundle.path, bundle.described, "evaluator")


def answers(bundle: Bundle, precision: Precision) -> Iterator[Tensor]:
    """What follows a prompt and three more tokens, then what `score` says where there is one."""
    manifest, program = bundle.described, in_precision(bundle, precision)
    session = Session(program, manifest)
    tokens = [(37 * index + 5) % manifest.vocab_size for index in range(2 * PROMPT)]
    for count in range(PROMPT, PROMPT + 4):
        yield session.feed(tokens[:count])
    if "score" in manifest.functions:
        query, start = manifest.functions["score"].query, PROMPT + 3
        given = {"input_ids": [tokens[start : start + query]], "position": [start], "count": [query - 1]}
        inputs = {name: torch.tensor(value, dtype=torch.int32) for name, value in given.items()}
        yield program.call("score", inputs)["logits"][:, : query - 1]


def assert_same(one: Bundle, other: Bundle) -> None:
    """Two bundles say the same in every precision of the evaluator."""
    for precision in PRECISIONS:
        for first, second in zip(answers(one, precision), answers(other, precision), strict=True):
            assert torch.equal(first, second)


def rounds(bundle: Bundle, prompt: list[int], tokens: int) -> list[object]:
    """What a draft guesses, round by round, and what is accepted of it."""
    session = Session(in_precision(bundle, "float32"), bundle.described)
    return list(session.speculate(prompt, tokens, lambda logits: int(logits.argmax())))
