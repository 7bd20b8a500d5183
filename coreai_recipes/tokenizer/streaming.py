"""Text from tokens that come one at a time. A leaf.

tokenizers' own DecodeStream raises "Invalid prefix" where a byte token changes what was already shown (<0x41> is "A",
but <0x41><0xE5> is two replacement characters), and it keeps an unfinished character to itself at the end.
"""

import re
from collections.abc import Collection
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

BYTE_TOKEN = re.compile("<0x[0-9A-F]{2}>")
UNFINISHED = "\N{REPLACEMENT CHARACTER}"


class TextStream:
    """The pieces that it gives, joined, are the decoded text of all tokens, special ones left out but for `shown`."""

    def __init__(self, tokenizer: "Tokenizer", shown: Collection[str] = ()) -> None:
        self._tokenizer = tokenizer
        added = tokenizer.get_added_tokens_decoder().items()
        self._skipped = {index for index, token in added if token.special and token.content not in shown}
        self._ids: list[int] = []  # the tokens of the last piece, which decide the space before the next, and new ones
        self._shown_tokens = 0
        self._shown = ""

    def add(self, token_id: int) -> str:
        """The text that this token completes; empty inside a character, and inside a run of byte tokens."""
        if token_id in self._skipped or (token := self._tokenizer.id_to_token(token_id)) is None:
            return ""  # not even the end of a run of byte tokens
        self._ids.append(token_id)
        if BYTE_TOKEN.fullmatch(token):
            return ""
        text = self._decode()
        return "" if text.endswith(UNFINISHED) else self._show(text)

    def finish(self) -> str:
        """What was held back, with a replacement character where a character was left unfinished."""
        return self._show(self._decode())

    def _show(self, text: str) -> str:
        piece = text[len(self._shown) :]
        if piece:
            self._ids = self._ids[self._shown_tokens :]
            self._shown_tokens = len(self._ids)
            self._shown = self._decode()
        return piece

    def _decode(self) -> str:
        return str(self._tokenizer.decode(self._ids, skip_special_tokens=False))  # `add` has skipped them
