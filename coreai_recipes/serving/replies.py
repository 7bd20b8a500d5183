"""An answer in OpenAI's documents: whole, or in the chunks of a stream."""

import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

from coreai_recipes.serving.tools import ToolReader
from coreai_recipes.serving.witness import Picked
from coreai_recipes.serving.worker import End, Piece

TextOf = Callable[[int], str]


class Reply(ABC):
    """The documents of one answer. `text_of` spells a token; `wants_usage` ends a stream with the count of tokens."""

    PREFIX: str

    def __init__(self, model: str, text_of: TextOf, has_logprobs: bool, wants_usage: bool) -> None:
        self._text_of, self._has_logprobs, self._wants_usage = text_of, has_logprobs, wants_usage
        self._named = {"id": f"{self.PREFIX}-{secrets.token_hex(12)}", "created": int(time.time()), "model": model}

    @abstractmethod
    def add(self, piece: Piece) -> list[dict[str, Any]]:
        """The chunks that a piece of the answer makes."""

    @abstractmethod
    def end(self, end: End) -> list[dict[str, Any]]:
        """The chunks that end a stream."""

    @abstractmethod
    def whole(self, pieces: Sequence[Piece], end: End) -> dict[str, Any]:
        """The document of an answer that is not streamed."""

    def _usage(self, end: End) -> dict[str, Any]:
        return {
            "prompt_tokens": end.prompt_tokens,
            "completion_tokens": end.completion_tokens,
            "total_tokens": end.prompt_tokens + end.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": end.cached},
        }

    def _chunk(self, kind: str, choice: dict[str, Any]) -> dict[str, Any]:
        return {**self._named, "object": kind, "choices": [{"index": 0, **choice}]}

    def _with_usage(self, kind: str, end: End) -> list[dict[str, Any]]:
        return [{**self._named, "object": kind, "choices": [], "usage": self._usage(end)}] if self._wants_usage else []


class ChatReply(Reply):
    """Of /v1/chat/completions; `tools` finds the calls in the text."""

    PREFIX = "chatcmpl"
    CHUNK = "chat.completion.chunk"

    def __init__(self, *given: Any, tools: ToolReader | None) -> None:
        super().__init__(*given)
        self._tools = tools
        self._is_begun = False

    def add(self, piece: Piece) -> list[dict[str, Any]]:
        text = piece.text if self._tools is None else self._tools.add(piece.text)
        if not text and not piece.picked:
            return self._begin()
        delta = {"content": text}
        return [
            *self._begin(),
            self._chunk(self.CHUNK, {"delta": delta, "logprobs": self._logprobs(piece.picked), "finish_reason": None}),
        ]

    def end(self, end: End) -> list[dict[str, Any]]:
        rest, calls = ("", []) if self._tools is None else self._tools.finish()
        deltas: list[dict[str, Any]] = [{"content": rest}] if rest else []
        deltas += [{"tool_calls": [{"index": index, **call}]} for index, call in enumerate(calls)]
        chunks = [self._chunk(self.CHUNK, {"delta": delta, "finish_reason": None}) for delta in deltas]
        last = self._chunk(self.CHUNK, {"delta": {}, "finish_reason": self._reason(end, bool(calls))})
        return [*self._begin(), *chunks, last, *self._with_usage(self.CHUNK, end)]

    def whole(self, pieces: Sequence[Piece], end: End) -> dict[str, Any]:
        text = "".join(piece.text for piece in pieces)
        calls: list[dict[str, Any]] = []
        if self._tools is not None:
            text = self._tools.add(text)
            rest, calls = self._tools.finish()
            text += rest
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        if calls:
            message |= {"content": text or None, "tool_calls": calls}
        picked = [each for piece in pieces for each in piece.picked]
        choice = {
            "message": message,
            "logprobs": self._logprobs(picked),
            "finish_reason": self._reason(end, bool(calls)),
        }
        return {**self._chunk("chat.completion", choice), "usage": self._usage(end)}

    def _begin(self) -> list[dict[str, Any]]:
        """A stream's first chunk says who speaks."""
        if self._is_begun:
            return []
        self._is_begun = True
        return [self._chunk(self.CHUNK, {"delta": {"role": "assistant", "content": ""}, "finish_reason": None})]

    @staticmethod
    def _reason(end: End, has_calls: bool) -> str:
        return "tool_calls" if has_calls and end.finish_reason == "stop" else end.finish_reason

    def _logprobs(self, picked: Sequence[Picked]) -> dict[str, Any] | None:
        if not self._has_logprobs:
            return None
        content = [
            {**self._spelt(each.token_id, each.logprob), "top_logprobs": [self._spelt(*other) for other in each.best]}
            for each in picked
        ]
        return {"content": content, "refusal": None}

    def _spelt(self, token_id: int, logprob: float) -> dict[str, Any]:
        text = self._text_of(token_id)
        is_part = "\N{REPLACEMENT CHARACTER}" in text  # of a character: its bytes are not known here
        return {"token": text, "logprob": logprob, "bytes": None if is_part else list(text.encode("utf-8", "replace"))}


class CompletionReply(Reply):
    """Of /v1/completions."""

    PREFIX = "cmpl"
    CHUNK = "text_completion"

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self._length = 0

    def add(self, piece: Piece) -> list[dict[str, Any]]:
        logprobs = self._logprobs(piece.picked)
        return [self._chunk(self.CHUNK, {"text": piece.text, "logprobs": logprobs, "finish_reason": None})]

    def end(self, end: End) -> list[dict[str, Any]]:
        last = self._chunk(self.CHUNK, {"text": "", "logprobs": None, "finish_reason": end.finish_reason})
        return [last, *self._with_usage(self.CHUNK, end)]

    def whole(self, pieces: Sequence[Piece], end: End) -> dict[str, Any]:
        choice = {
            "text": "".join(piece.text for piece in pieces),
            "logprobs": self._logprobs([each for piece in pieces for each in piece.picked]),
            "finish_reason": end.finish_reason,
        }
        return {**self._chunk(self.CHUNK, choice), "usage": self._usage(end)}

    def _logprobs(self, picked: Sequence[Picked]) -> dict[str, Any] | None:
        if not self._has_logprobs:
            return None
        texts = [self._text_of(each.token_id) for each in picked]
        offsets = []
        for text in texts:
            offsets.append(self._length)
            self._length += len(text)
        return {
            "tokens": texts,
            "token_logprobs": [each.logprob for each in picked],
            "top_logprobs": [{self._text_of(token): value for token, value in each.best} for each in picked],
            "text_offset": offsets,
        }
