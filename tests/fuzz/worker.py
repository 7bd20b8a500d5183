"""The process in which hostile inputs are tried: its imports are paid once, and its memory and its time are bounded.

Reads pickled (entry point, input) from standard input and answers each with a pickled Outcome on standard output.
"""

import ctypes
import gc
import os
import pickle
import resource
import signal
import sys
import tempfile
import time
import traceback
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

SECONDS = 5  # of the processor: the wall's say as much about what runs beside it
MEGABYTES = 1000
HEADROOM = 3 << 30  # of address space beyond the imports', so that what grows without end dies here and not the machine


class TooSlow(BaseException):
    """The seconds are over."""


def stop(number: int, frame: FrameType | None) -> None:
    raise TooSlow


def peak_megabytes() -> float:
    """The most that was resident since `forget_peak`, or since the start where the system cannot forget."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / (1 << 20 if sys.platform == "darwin" else 1 << 10)


def forget_peak() -> None:
    """What earlier inputs have left in the allocator's hands is not the next one's."""
    gc.collect()
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def bound_memory() -> None:
    with suppress(OSError, ValueError):  # macOS has no such limit
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + HEADROOM, resource.RLIM_INFINITY))


def attempt(call: Any, given: Any) -> tuple[str, str]:
    """`ok`, `refused` or `fault`, and the reason or the traceback of the last two."""
    from coreai_recipes.errors import UserError

    with tempfile.TemporaryDirectory() as folder:
        try:
            signal.setitimer(signal.ITIMER_PROF, SECONDS)
            call(Path(folder), given)
        except UserError as error:
            return "refused", str(error)[:500]
        except TooSlow as slow:
            return "fault", f"{SECONDS} s of the processor are over:\n" + "".join(
                traceback.format_tb(slow.__traceback__)[-4:]
            )
        except BaseException as error:
            return "fault", "".join(traceback.format_exception(error))[-3000:]
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
    return "ok", ""


def main() -> None:
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    signal.signal(signal.SIGPROF, stop)
    import entry_points

    if "cold" not in sys.argv:
        entry_points.warm_up()
    gc.collect()
    gc.freeze()  # of 425,000 objects that stay: looking at them before each input took longer than the input
    bound_memory()
    while True:
        try:
            name, given = pickle.load(requests)
        except EOFError:
            return
        forget_peak()
        started = time.process_time()
        verdict, reason = attempt(getattr(entry_points, name), given)
        seconds, peak = time.process_time() - started, peak_megabytes()
        if verdict != "fault" and seconds > SECONDS:
            verdict, reason = "fault", f"took {seconds:.1f} s of the processor"
        if verdict != "fault" and peak > MEGABYTES:
            verdict, reason = "fault", f"took {peak:.0f} MB"
        pickle.dump((verdict, reason, seconds, peak), answers)
        answers.flush()


if __name__ == "__main__":
    main()
