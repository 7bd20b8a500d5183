"""`recipe` in a process of its own, its streams a terminal, pipes or files."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress

ENTRY = "from coreai_recipes.cli import main; main()"


def command(*arguments: object, before: str = "") -> list[str | bytes]:
    """The command line; `before` is Python that runs first."""
    words = [word if isinstance(word, bytes) else str(word) for word in arguments]
    return [sys.executable, "-c", f"{before}\n{ENTRY}", *words]


def run_on_terminal(
    *arguments: object, before: str = "", typed: bytes = b"", answers: Sequence[tuple[bytes, bytes]] = ()
) -> tuple[int, bytes]:
    """Status and what the terminal got, standard output and error alike. `answers` are typed one by one, each when its
    first half has been shown."""
    ours, theirs = os.openpty()
    process = subprocess.Popen(command(*arguments, before=before), stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    if typed:
        os.write(ours, typed)
    got, seen, waiting = b"", 0, list(answers)
    with suppress(OSError):  # how Linux says that the other end is closed
        while piece := os.read(ours, 1 << 16):
            got += piece
            while waiting and (at := got.find(waiting[0][0], seen)) >= 0:
                seen = at + len(waiting[0][0])
                os.write(ours, waiting.pop(0)[1])
    os.close(ours)
    return process.wait(), got


def run_on_pipes(
    *arguments: object, before: str = "", typed: bytes = b"", env: Mapping[str, str] | None = None
) -> tuple[int, bytes, bytes]:
    """Status, standard output and standard error."""
    done = subprocess.run(
        command(*arguments, before=before),
        input=typed or b"",
        capture_output=True,
        check=False,
        env=None if env is None else dict(env),
    )
    return done.returncode, done.stdout, done.stderr
