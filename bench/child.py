"""A command in a process of its own: its seconds, its peak memory and the JSON that it prints.

The parent must stay small: Linux counts the memory of the process that started a child into the child's peak.
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PYTHON = sys.executable
RECIPE = str(Path(sys.executable).with_name("recipe"))
SAMPLED_SECONDS = 0.02
MAXRSS_BYTES = 1 if sys.platform == "darwin" else 1024  # the unit of ru_maxrss


class ChildError(Exception):
    """A command failed; the message ends with what it wrote last."""


@dataclass(frozen=True)
class Finished:
    """A child that ended well: wall and processor seconds and peak resident bytes, of it and of all that it started,
    and its JSON."""

    seconds: float
    processor_seconds: float
    peak_bytes: int
    result: Any
    stderr: str


def run(
    command: Sequence[str],
    env: Mapping[str, str] | None = None,
    result: bool = True,
    may_fail: bool = False,
    cwd: Path | None = None,
) -> Finished:
    """Run `command` to its end. With `result`, its standard output is JSON, or ends with a line of it.

    With `may_fail` exit status 1, a verdict of `recipe verify`, is as good as 0. Raises ChildError otherwise.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors:
        started = time.perf_counter()
        child = subprocess.Popen(command, stdout=out, stderr=errors, env={**os.environ, **(env or {})}, cwd=cwd)
        together = _Together(child.pid)
        _, status, usage = os.wait4(child.pid, 0)
        seconds = time.perf_counter() - started
        together.end()
        child.returncode = os.waitstatus_to_exitcode(status)  # so that Popen does not wait for it again
        out.seek(0), errors.seek(0)
        stdout, stderr = out.read().decode(), errors.read().decode(errors="replace")
    if child.returncode not in ((0, 1) if may_fail else (0,)):
        last = "\n".join((stdout + stderr).strip().splitlines()[-15:])
        raise ChildError(f"{' '.join(command)}: exit status {child.returncode}\n{last}")
    return Finished(
        seconds,
        usage.ru_utime + usage.ru_stime,
        max(usage.ru_maxrss * MAXRSS_BYTES, together.peak),
        read_result(stdout) if result else None,
        stderr,
    )


class _Together:
    """The most that a process and its descendants were seen to take at once. The system keeps a peak of each process,
    not of their sum; Linux alone is asked for that, and where a process has no descendants nothing is added."""

    def __init__(self, pid: int) -> None:
        self.peak = 0
        self._pid, self._ended = pid, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def end(self) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(SAMPLED_SECONDS):
            self.peak = max(self.peak, sum(map(_resident_bytes, _family(self._pid))))


def _family(pid: int) -> list[int]:
    """A process and its descendants."""
    found = [pid]
    for each in found:  # which grows meanwhile
        with suppress(OSError):
            for task in Path(f"/proc/{each}/task").iterdir():
                found += map(int, (task / "children").read_text().split())
    return found


def _resident_bytes(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def module(name: str, *arguments: object) -> list[str]:
    """The command that runs a module of `bench.children`."""
    return [PYTHON, "-m", f"bench.children.{name}", *map(str, arguments)]


def read_result(stdout: str) -> Any:
    """A whole JSON document, or the last line of what was printed."""
    try:
        return json.loads(stdout)
    except ValueError:
        return json.loads(stdout.strip().splitlines()[-1])


def import_seconds(stderr: str, names: Sequence[str]) -> dict[str, float]:
    """Of a child under PYTHONPROFILEIMPORTTIME: the seconds of each import, with all that it imported first."""
    found = {}
    for line in stderr.splitlines():
        parts = line.removeprefix("import time:").split("|")
        if line.startswith("import time:") and len(parts) == 3 and parts[2].strip() in names:
            found[parts[2].strip()] = int(parts[1]) / 1e6
    return found
