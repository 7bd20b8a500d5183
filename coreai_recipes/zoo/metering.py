"""What each step of a build takes: seconds, processor seconds, the peak of memory."""

import os
import re
import resource
import sys
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

BUILD, CONVERT = "build", "convert"
CONVERSION = "conversion"  # what an export calls it

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass
class Spent:
    """`peak_memory` in bytes: of the process, while the step ran."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak_memory: int = 0


class Meter:
    """Takes the progress of a build, and charges what was spent since it was last heard to the step that was on."""

    def __init__(self, stages: Collection[str], announce: Callable[[str], object] = lambda step: None) -> None:
        self.spent: dict[str, Spent] = {}
        self._stages, self._announce = stages, announce
        self._step = BUILD
        self._since = _now()
        _clear_peak()
        announce(BUILD)

    def __call__(self, what: str, done: int, total: int) -> None:
        """As `Progress`: a stage or a part of it (`compressed: loss`), or a step of an export."""
        stage = what.partition(":")[0]
        if stage in self._stages:
            step = stage
        elif what == CONVERSION:
            step = CONVERT if done < total else BUILD
        else:
            return  # weights stream beside the conversion
        if step != self._step:
            self.charge()
            self._step = step
            self._announce(step)

    def charge(self) -> None:
        """Charge what is not charged yet."""
        now, spent = _now(), self.spent.setdefault(self._step, Spent())
        spent.seconds += now[0] - self._since[0]
        spent.cpu_seconds += now[1] - self._since[1]
        spent.peak_memory = max(spent.peak_memory, _peak())
        self._since = now
        _clear_peak()


def _now() -> tuple[float, float]:
    """Seconds by the clock, and of processors: those of processes that it waited for included."""
    times = os.times()
    return time.perf_counter(), times.user + times.system + times.children_user + times.children_system


def _peak() -> int:
    """Bytes, since they were last cleared where the system can do that, else since the process began."""
    with suppress(OSError):
        match = re.search(r"^VmHWM:\s+(\d+) kB", STATUS.read_text(), re.MULTILINE)
        if match:
            return int(match[1]) << 10
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most << 10


def _clear_peak() -> None:
    with suppress(OSError):
        CLEAR.write_text("5")  # proc(5): resets the peak resident set size
