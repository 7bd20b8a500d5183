"""Trying many inputs on an entry point: every distinct fault at once, each with the input that causes it."""

import os
import pickle
import re
import select
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.strategies import SearchStrategy

PATIENCE = 120  # seconds until a worker that does not even notice its alarm is taken for dead
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", 0))  # `make fuzz`: how many, and not the same ones each time


class Worker:
    """One process for many inputs; another when an input has killed it."""

    def __init__(self, cold: bool = False) -> None:
        self._words = [sys.executable, str(Path(__file__).with_name("worker.py")), *(["cold"] if cold else [])]
        self._process: subprocess.Popen[bytes] | None = None

    def attempt(self, name: str, given: Any) -> tuple[str, str, float, float]:
        """Verdict, reason, seconds of the processor and megabytes."""
        process = self._process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        pickle.dump((name, given), process.stdin)
        process.stdin.flush()
        ready, _, _ = select.select([process.stdout], [], [], PATIENCE)
        if not ready:
            self.close()
            return "fault", f"no answer in {PATIENCE} s", PATIENCE, 0
        try:
            answer: tuple[str, str, float, float] = pickle.load(process.stdout)
        except EOFError:
            status = process.wait()
            self.close()
            return "fault", f"the process died with status {status}", 0, 0
        if answer[0] == "fault":
            self.close()  # it may be left in any state
        return answer

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _start(self) -> subprocess.Popen[bytes]:
        self._process = subprocess.Popen(
            self._words,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        )
        return self._process


def find_faults(worker: Worker, name: str, inputs: SearchStrategy[Any], examples: int) -> str:
    """Every distinct fault of an entry point among `examples` inputs, as text; empty when there is none."""
    found: dict[str, str] = {}
    verdicts: Counter[str] = Counter()
    slowest = largest = 0.0

    @settings(
        max_examples=EXAMPLES or examples,
        derandomize=not EXAMPLES,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(inputs)
    def attempt(value: Any) -> None:
        nonlocal slowest, largest
        verdict, reason, seconds, megabytes = worker.attempt(name, value)
        verdicts[verdict] += 1
        slowest, largest = max(slowest, seconds), max(largest, megabytes)
        if verdict == "fault":
            found.setdefault(_place(reason), f"{reason.strip()}\n\n{name} of {value!r:.6000}")

    attempt()
    said = ", ".join(f"{count} {verdict}" for verdict, count in sorted(verdicts.items()))
    print(f"{name}: {sum(verdicts.values())} tried, {said}; at most {slowest:.1f} s and {largest:.0f} MB")
    return "\n\n".join(found.values())


def _place(reason: str) -> str:
    """What two reports of one fault have in common: the last line of ours, and the class of the error."""
    ours = re.findall(r'File "[^"]*/(coreai_recipes/[^"]*)", line (\d+)', reason)
    last = reason.strip().splitlines()[-1].partition(":")[0]
    return f"{ours[-1] if ours else ''} {last}"
