"""Speculative decoding with a draft that reads the target's caches, over the functions of a package.

A round drafts up to N - 1 tokens by `draft`, one a call or several, verifies them and the token before in one call of
`score`, and keeps those that the target would have picked itself, and its own next one. What is rejected is rolled back
by position.
What a draft sees is what transformers shows it (SinglePositionMultiTokenCandidateGenerator): the text is the target's
own either way, but the number of tokens that are accepted is compared with transformers', round by round.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from coreai_recipes.hosts.logits import best, choices

if TYPE_CHECKING:
    from torch import Tensor

    Call = Callable[[str, Mapping[str, Tensor]], Mapping[str, Tensor]]
    Pick = Callable[[Tensor], int]


@dataclass(frozen=True)
class Round:
    """What was drafted, how many of these the target accepted, and the tokens that the round gave."""

    drafted: tuple[int, ...]
    accepted: int
    tokens: tuple[int, ...]


def seen_positions(window: int | None, processed: int, length: int, fed: int) -> int:
    """Up to which position (excluded) a draft sees the target's keys and values of a kind.

    `processed` positions were given to the target, the last `fed` of them in its last call; the text has `length`
    tokens, the last of which the target has only picked. Full layers show what was processed up to the text's length,
    a rejected token at its end included. Sliding layers show what transformers' cache holds at that moment, which it
    cuts from the front: once the window has moved, rejected tokens are seen to the last.
    """
    held = processed if window is None else min(processed, window - 1 + fed)
    return processed - held + min(held, length)


class Speculator:
    """Runs rounds over `call(function, inputs)`, whose states are the caller's.

    `windows` are those of the kinds that the draft reads, None for full ones; `queries` the tokens that a call of each
    function takes.
    """

    def __init__(
        self,
        call: "Call",
        windows: Mapping[str, int | None],
        queries: Mapping[str, int],
        context: int,
        vocab_size: int,
    ) -> None:
        self._call, self._windows, self._queries, self._context = call, windows, queries, context
        self._vocab_size = vocab_size

    def rounds(self, prompt: Sequence[int], max_tokens: int, pick: "Pick", skip: int = 0) -> Iterator[Round]:
        """Rounds of up to `max_tokens` tokens after `prompt`, of which the states hold the first `skip` already.

        `pick` is given what the target says of a next token, a row of `logits.choices`.

        The first round drafts nothing: it gives the token that follows the prompt. No call goes beyond the context.
        """
        text = list(prompt)
        rows, hidden = self._feed(text, skip)
        room = min(len(prompt) + max_tokens, self._context + 1)
        processed, fed = len(text), len(text) - skip
        token = pick(rows[-1])
        text.append(token)
        yield Round((), 0, (token,))
        while len(text) < room:
            most = min(self._queries["score"] - 1, room - len(text) - 1)
            drafted = self._draft(text, hidden, processed, fed, most)
            rows, hiddens = self._score([text[-1], *drafted], len(text) - 1)
            processed, fed = len(text) + len(drafted), 1 + len(drafted)
            picked: list[int] = []
            for row in range(1 + len(drafted)):
                picked.append(pick(rows[row]))
                if row == len(drafted) or picked[-1] != drafted[row]:
                    break
            hidden = hiddens[:, len(picked) - 1 : len(picked)]
            text += picked
            yield Round(tuple(drafted), len(picked) - 1, tuple(picked))

    def _feed(self, text: list[int], skip: int) -> tuple["Tensor", "Tensor"]:
        """What follows the last token, and its hidden state."""
        import torch

        size = self._queries["prefill"]
        for start in range(skip, len(text), size):
            chunk = text[start : start + size]
            found = self._call("prefill", self._inputs(chunk, start, size))
        return choices(found, self._vocab_size), torch.as_tensor(found["hidden"])

    def _draft(self, text: list[int], hidden: "Tensor", processed: int, fed: int, most: int) -> list[int]:
        import torch

        seen = {
            f"seen_{kind}": torch.tensor([seen_positions(window, processed, len(text), fed)], dtype=torch.int32)
            for kind, window in self._windows.items()
        }
        drafted: list[int] = []
        while len(drafted) < most:
            inputs = {
                "input_ids": torch.tensor([[drafted[-1] if drafted else text[-1]]], dtype=torch.int32),
                "last_hidden": hidden,
                "position": torch.tensor([len(text) - 1], dtype=torch.int32),
                **seen,
            }
            found = self._call("draft", inputs)
            hidden = found["hidden"]
            drafted += [best(choice) for choice in choices(found, self._vocab_size)]
        return drafted[:most]

    def _score(self, tokens: list[int], position: int) -> tuple["Tensor", "Tensor"]:
        """What follows each token, and their hidden states."""
        if len(tokens) == 1:
            inputs = self._inputs(tokens, position, 1)
            del inputs["count"]
            found = self._call("decode", inputs)
        else:
            found = self._call("score", self._inputs(tokens, position, self._queries["score"]))
        return choices(found, self._vocab_size), found["hidden"]

    @staticmethod
    def _inputs(tokens: list[int], position: int, size: int) -> dict[str, "Tensor"]:
        import torch

        return {
            "input_ids": torch.tensor([tokens + [0] * (size - len(tokens))], dtype=torch.int32),
            "position": torch.tensor([position], dtype=torch.int32),
            "count": torch.tensor([len(tokens)], dtype=torch.int32),
        }
