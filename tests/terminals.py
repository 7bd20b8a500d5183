"""`recipe` in a process of its own, its streams a terminal, pipes or files."""

import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress

ENTRY = "from coreai_recipes.cli import main; main()"


def command(*arguments: object, before: str = "") -> list[str | bytes]:
    """The command line; `before` is Python that runs first."""
    words = [word if isinstance(word, bytes) else str(word) for word in arguments]
    return [sys.executable, "-c", f"{before}\n{ENTRY}", *words]


def run_on_terminal(*arguments: object, before: str = "", typed: bytes = b"") -> tuple[int, bytes]:
    """Status and what the terminal got, standard output and error alike."""
    ours, theirs = os.openpty()
    process = subprocess.Popen(command(*arguments, before=before), stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    if typed:
        os.write(ours, typed)
    got = b""
    with suppress(OSError):  # how Linux says that the other end is closed
        while piece := os.read(ours, 1 << 16):
            got += piece
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
