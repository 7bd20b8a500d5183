"""Sequences through a package call by call, every call's logits held against transformers'."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from families import Pair
from figures import psnr
from programs import starts_and_counts
from torch import Tensor

from coreai_recipes.evaluate import Program
from coreai_recipes.hosts.logits import choices
from coreai_recipes.running.tables import Tables

CONTEXT, PREFILL, SCORE, WINDOW = 64, 16, 5, 7
FLOOR = 90.0


@dataclass
class Subject:
    """A package, the tokens that it is given and transformers' logits at each of their positions, (64, V)."""

    program: Program
    tokens: Tensor
    theirs: Tensor
    tables: Tables = field(default_factory=lambda: Tables({}))

    def session(self) -> "Session":
        return Session(self)


class Session:
    """One sequence through the package; every call's logits are held against transformers'."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.state = subject.program.make_state()
        self.position = 0

    def call(self, function: str, tokens: Tensor, padding: int = 0) -> Tensor:
        """The logits of `tokens` at the session's position, which then stands behind them."""
        queries = {"decode": 1, "prefill": PREFILL, "score": SCORE}[function]
        ids = torch.full((1, queries), padding, dtype=torch.int32)
        ids[0, : len(tokens)] = tokens
        inputs = {"input_ids": ids, "position": torch.tensor([self.position], dtype=torch.int32)}
        if function != "decode":
            inputs["count"] = torch.tensor([len(tokens)], dtype=torch.int32)
        given = self.subject.tables.with_rows(function, inputs)
        outputs = self.subject.program.function(function)(given, self.state)
        logits = choices(outputs, self.subject.theirs.shape[1])
        self.position += len(tokens)
        return logits[: len(tokens)] if function == "score" else logits

    def take(self, function: str, count: int = 1, padding: int = 0) -> Tensor:
        """The next `count` tokens of the sequence; the logits are checked."""
        end = self.position + count
        ours = self.call(function, self.subject.tokens[self.position : end], padding)
        theirs = self.subject.theirs[end - len(ours) : end]
        found = psnr(theirs, ours)
        assert found >= FLOOR, f"{function} of {count} up to position {end}: {found:.1f} dB"
        return ours

    def take_all(self, lengths: Sequence[int], padding: int = 0) -> None:
        """Consecutive chunks: one token is decoded, several are a prefill."""
        for _, count in starts_and_counts(list(lengths)):
            self.take("decode" if count == 1 else "prefill", count, padding)

    def draft(self, right: int) -> None:
        """Score SCORE tokens (or what the context still holds) of which only `right` are the sequence's own."""
        start, count = self.position, min(SCORE, CONTEXT - self.position)
        right = min(right, count)
        tokens = self.subject.tokens[start : start + count].clone()
        tokens[right:] = (tokens[right:] + 1) % self.subject.theirs.shape[1]
        ours = self.call("score", tokens, padding=3)[:right]
        assert right == 0 or psnr(self.subject.theirs[start : start + right], ours) >= FLOOR
        self.position = start + right


def rounded(pair: Pair) -> Pair:
    """The pair with weights that float16 holds exactly; of a `1+w` norm it is the sum that is stored."""
    one = 1.0 if pair.recipe.model.norm.weight == "1+w" else 0.0
    with torch.no_grad():
        for name, tensor in pair.model.state_dict().items():  # Gemma 4's layer scalars are buffers
            offset = one if "norm" in name else 0.0
            tensor.copy_((tensor + offset).half().float() - offset)
    return pair
