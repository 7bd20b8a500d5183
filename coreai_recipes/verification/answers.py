"""What a package answers: asked here, or in a process of its own while transformers computes in this one."""

import os
import pickle
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch

from coreai_recipes.child_process import command_of, take_output
from coreai_recipes.evaluate.precision import Precision
from coreai_recipes.verification.calls import CallResult, FunctionCall, in_turn, run_call
from coreai_recipes.verification.memory import fits
from coreai_recipes.verification.runtime import open_program
from coreai_recipes.verification.subject import Subject

if TYPE_CHECKING:
    from coreai_recipes.verification.scale import Peaks

Mode = Precision | Literal["coreml", "coreai"]
Done = Callable[[int], object]

# A smaller model is proven before another process has imported torch.
LEAST_BYTES = 128 << 20
# As many float32 models as four take, of a third of what is free: transformers', ours, and the package's weights, which
# are there in float32 and twice in float16.
MODELS = 2


@dataclass(frozen=True)
class Asked:
    """Calls of the package from empty states. `watched` are values inside that are wanted, `without` the engine's
    habits that are left out, `peaks` what measures every float value. With `float16_states` the states of
    recurrences are float16 between calls, whatever the mode. `adapter` is the one that the calls are given."""

    mode: Mode
    calls: tuple[FunctionCall, ...]
    watched: frozenset[str] = frozenset()
    without: tuple[str, ...] = ()
    peaks: "Peaks | None" = field(default=None, compare=False)
    float16_states: bool = False
    adapter: str | None = None


@dataclass(frozen=True)
class Answered:
    """The calls' results, the operations where infinity and NaN began, and what was measured of peaks."""

    answers: list[CallResult]
    overflowed: list[str]
    nans: list[str]
    largest: dict[str, float] | None = None


def ask(subject: Subject, asked: Asked, tell: str) -> Answered:
    """The package's answers; `tell` is the step that progress is told of."""
    total = len(asked.calls)

    def done(count: int) -> None:
        subject.progress(tell, count, total)

    beside = subject.beside
    found = None if beside is None else beside.take(asked, done)
    if beside is not None and beside.is_done:
        torch.set_num_threads(beside.threads)
    if found is None:
        found = _answer(subject, subject.tokens.sequence, asked, done)
    if asked.peaks is not None and found.largest is not None:
        asked.peaks.largest.update(found.largest)
    return found


def _answer(subject: Subject, ids: Sequence[int], asked: Asked, done: Done) -> Answered:
    mode, recipe = asked.mode, subject.recipe
    precision: Precision = "rounded" if mode == "coreml" or mode == "coreai" else mode
    program = open_program(subject, precision, asked.without, asked.float16_states, asked.adapter)
    note = None if asked.peaks is None else asked.peaks.note
    answers: list[CallResult] = []
    overflowed: dict[str, None] = {}
    nans: dict[str, None] = {}
    for count, call in enumerate(in_turn(program, asked.calls), 1):
        answers.append(run_call(program, ids, call, set(asked.watched), recipe, note))
        of_call = program.faults(call.function)
        overflowed |= dict.fromkeys(of_call[0])
        nans |= dict.fromkeys(of_call[1])
        if subject.runtime != "evaluator" and not answers[-1].logits.isfinite().all():
            overflowed[f"logits of {call.function}"] = None
        done(count)
    largest = None if asked.peaks is None else dict(asked.peaks.largest)
    return Answered(answers, list(overflowed), list(nans), largest)


class Beside:
    """A process that answers all that is `asked`, in that order. What it does not answer is asked in this one, which
    then says what is wrong."""

    def __init__(self, request: bytes, asked: Sequence[Asked], threads: int) -> None:
        """Of `threads` each of the two processes has half. `request` is what `serve` reads."""
        self.threads, self._asked, self._taken = threads, list(asked), 0
        self._told: queue.Queue[tuple[int, Any] | None] = queue.Queue()
        self._process = subprocess.Popen(
            command_of(__name__, "serve"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": str(threads // 2)},
        )
        self._thread = threading.Thread(target=self._talk, args=(request,), name="beside", daemon=True)
        self._thread.start()

    @property
    def is_done(self) -> bool:
        return self._taken == len(self._asked)

    def take(self, asked: Asked, done: Done) -> Answered | None:
        """What the process answers, waited for; None where it was not asked that, or has failed."""
        while not self.is_done and asked in self._asked[self._taken :]:
            told = self._told.get()
            if told is None:
                self._taken = len(self._asked)
                return None
            number, found = told
            is_this = self._asked[number] == asked
            if isinstance(found, Answered):
                self._taken = number + 1
                if is_this:
                    return found
            elif is_this:
                done(found)
        return None

    def end(self) -> None:
        """Stop it, whatever it does."""
        self._process.kill()
        self._thread.join()
        with self._process:  # which closes its streams
            pass

    def _talk(self, request: bytes) -> None:
        """Put what the process tells into the queue; None at its end, however it ends."""
        stdin, stdout = self._process.stdin, self._process.stdout
        try:
            with suppress(OSError, EOFError, pickle.UnpicklingError):
                if stdin is not None and stdout is not None:
                    with stdin:
                        stdin.write(request)
                    while True:
                        self._told.put(pickle.load(stdout))
        finally:
            self._told.put(None)


def serve() -> None:
    """The process: read what is asked from standard input, and tell (number, calls done) and (number, Answered)."""
    with take_output() as stdout:

        def tell(number: int, found: object) -> None:
            pickle.dump((number, found), stdout)
            stdout.flush()

        recipe, package, ids, all_asked = pickle.load(sys.stdin.buffer)
        subject = Subject(recipe, {}, package)
        for number, asked in enumerate(all_asked):
            tell(number, _answer(subject, ids, asked, partial(tell, number)))


@contextmanager
def asked_beside(subject: Subject, asks: Callable[[], Sequence[Asked]]) -> Iterator[None]:
    """Meanwhile a process of its own answers what `asks` gives, where there are processors and memory for two: each has
    half of the threads, and until all is answered this one too."""
    threads, size = torch.get_num_threads(), subject.float32_bytes
    is_worth = subject.package is not None and subject.runtime == "evaluator" and threads > 1 and size >= LEAST_BYTES
    asked = asks() if is_worth and fits(MODELS * size) else ()
    if not asked:
        yield
        return
    try:
        request = pickle.dumps((subject.recipe, subject.package, subject.tokens.sequence, asked))
    except (pickle.PicklingError, AttributeError, TypeError):  # kinds of a user's own, which no other process knows
        yield
        return
    torch.set_num_threads(threads - threads // 2)
    subject.beside = beside = Beside(request, asked, threads)
    try:
        yield
    finally:
        beside.end()
        subject.beside = None
        torch.set_num_threads(threads)
