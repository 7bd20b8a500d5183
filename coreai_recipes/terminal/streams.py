"""The standard streams as every command uses them: what a terminal must not see, and what cannot be written. A leaf.

What a model, a checkpoint or a file's name says is shown, and must not move the cursor, retitle the window or reorder
the line: a terminal gets such characters spelt out (`\\x1b`), a pipe and a file get them as they are.
"""

import codecs
import errno
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, TextIO, cast

from coreai_recipes.errors import UserError

# C0 but newline and tab, DEL, C1, line and paragraph separators, what reorders a line, and halves of surrogate pairs
# (which stand for bytes that are no text)
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_BYTES = range(0xDC80, 0xDD00)  # os.fsdecode's stand-ins for single bytes
MAX_INPUT_BYTES = 16 << 20
AS_BYTES, SPELT_OUT = "recipe.as_bytes", "recipe.spelt_out"  # our handlers of what an encoding cannot hold


class StreamError(UserError):
    """A standard stream that cannot be read or written."""


class ReaderGone(Exception):
    """Whoever read our standard output has left, as `head` does: nothing more is to be said."""


def escape(text: str) -> str:
    """`text` with every character that a terminal would obey, or that would reorder its line, spelt out."""
    return _UNSAFE.sub(lambda found: _spell(ord(found[0])), text)


def _spell(code: int) -> str:
    if code in _BYTES:
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _spell_out(error: UnicodeError) -> tuple[str | bytes, int]:
    """A character that a stream's encoding cannot hold, spelt out."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return _spell(ord(error.object[error.start])), error.start + 1


def _give_bytes(error: UnicodeError) -> tuple[str | bytes, int]:
    """As `_spell_out`, but a stand-in for a byte is that byte: a file's name is what it is."""
    if isinstance(error, UnicodeEncodeError) and (code := ord(error.object[error.start])) in _BYTES:
        return bytes([code - 0xDC00]), error.start + 1
    return _spell_out(error)


class GuardedStream:
    """A standard stream whose faults are sentences; on a terminal what is written is escaped, unless it `draws`.

    A standard error that cannot be written to is no fault: nobody reads it, and the result is as good.
    """

    def __init__(self, stream: TextIO | None, name: str, draws: bool = False) -> None:
        self._stream = stream
        self._name = name
        self._escapes = not draws and self.isatty()

    def write(self, text: str) -> int:
        with self._explained():
            if self._stream is None:
                raise OSError(errno.EBADF, "it is closed")
            self._stream.write(escape(text) if self._escapes else text)
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        if self._stream is not None:
            with self._explained():
                self._stream.flush()

    def close(self) -> None:
        """Only the process ends its streams: what wants to close ours (a plugin) is somebody else's."""
        self.flush()

    def isatty(self) -> bool:
        return self._stream is not None and self._stream.isatty()

    def drawing(self) -> TextIO:
        """The same stream for what draws with control sequences of its own, its words escaped before."""
        return cast(TextIO, GuardedStream(self._stream, self._name, draws=True))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._discard()
            if self._name == "standard error":
                return
            if error.errno == errno.EPIPE:
                raise ReaderGone from None
            reason = (error.strerror or str(error)).lower()
            raise StreamError(f"{self._name}: cannot be written: {reason}") from None

    def _discard(self) -> None:
        """Let what is left in the buffer go nowhere: Python writes it when it exits, and complains."""
        import os

        try:
            handle = cast(TextIO, self._stream).fileno()
        except (AttributeError, OSError, ValueError):
            return  # not a stream of the process
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, handle)
        os.close(nowhere)


@contextmanager
def guarded_streams() -> Iterator[None]:
    """Standard output and error guarded, and flushed at the end; standard input takes any bytes (`check_text`)."""
    before = sys.stdout, sys.stderr
    codecs.register_error(AS_BYTES, _give_bytes)
    codecs.register_error(SPELT_OUT, _spell_out)
    for stream, answer in zip(before, (AS_BYTES, SPELT_OUT), strict=True):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=answer)
    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(errors="surrogateescape")
    out, err = (
        GuardedStream(stream, name) for stream, name in zip(before, ("standard output", "standard error"), strict=True)
    )
    sys.stdout, sys.stderr = cast(TextIO, out), cast(TextIO, err)
    try:
        yield
        out.flush()
    finally:
        err.flush()
        sys.stdout, sys.stderr = before


def drawing(stream: TextIO) -> TextIO:
    """`stream` for what draws with control sequences of its own."""
    return stream.drawing() if isinstance(stream, GuardedStream) else stream


def read_input() -> str:
    """All of standard input. Raises UserError when it cannot be read, is not text, or is larger than any prompt."""
    return check_text(_read_stdin(lambda stream: stream.read(MAX_INPUT_BYTES + 1)), "standard input")


def read_line(prompt: str) -> str:
    """A line of standard input, with its newline; empty at its end. Raises UserError as `read_input` does."""
    if prompt and sys.stdin is not None and sys.stdin.isatty():
        try:
            return check_text(_edit_line(prompt) + "\n", "the line")
        except EOFError:
            return ""
    return check_text(_read_stdin(lambda stream: stream.readline(MAX_INPUT_BYTES + 1)), "the line")


def _edit_line(prompt: str) -> str:
    """A line that is typed, edited, and recalled with the arrow keys; the history is this process's."""
    if not sys.stdout.isatty():
        return input(prompt)
    return str(_open_editor().prompt(prompt, handle_sigint=False))  # signals are answered by ours


@cache
def _open_editor() -> Any:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.output import create_output

    return PromptSession(output=create_output(stdout=drawing(sys.stdout)))


def _read_stdin(read: Any) -> str:
    if sys.stdin is None:
        raise StreamError("standard input: cannot be read: it is closed")
    try:
        text: str = read(sys.stdin)
    except OSError as error:
        raise StreamError(f"standard input: cannot be read: {(error.strerror or str(error)).lower()}") from None
    if len(text) > MAX_INPUT_BYTES:
        raise StreamError(f"standard input: more than {MAX_INPUT_BYTES >> 20} MiB, too much for a prompt")
    return text


def check_text(text: str, place: str) -> str:
    """`text`, unless it holds bytes that are not text, which no tokenizer reads: UserError that begins with `place`."""
    for at, character in enumerate(text):
        if 0xD800 <= ord(character) < 0xE000:
            encoding = (getattr(sys.stdin, "encoding", None) or "UTF-8").upper()
            raise UserError(f"{place}: not {encoding}: byte 0x{ord(character) & 0xFF:02x} after {at} characters")
    return text
