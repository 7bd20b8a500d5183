"""One bundle's sessions, and the requests that wait for it: answered one after another, in a thread of their own."""

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from coreai_recipes.errors import UserError, describe
from coreai_recipes.generate.answering import Answer, FinishReason
from coreai_recipes.generate.language_model import LanguageModel
from coreai_recipes.generate.sampling import Sampling
from coreai_recipes.serving.metrics import Metrics
from coreai_recipes.serving.prefixes import Prefixes
from coreai_recipes.serving.refusals import Refusal
from coreai_recipes.serving.witness import Picked, Witness


@dataclass(frozen=True)
class Piece:
    """Text of an answer, and its tokens, where their probabilities were asked for."""

    text: str
    picked: tuple[Picked, ...]


@dataclass(frozen=True)
class End:
    """An answer's end. `cached` tokens of its prompt were not computed again."""

    finish_reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    cached: int


Event = Piece | End | Refusal
STOPPED = Refusal(503, "the server is being stopped", code="shutting_down")


@dataclass(eq=False)
class Job:
    """A prompt that is to be answered by the model of that name; `tell` is given the events, in the worker's thread,
    and must not wait."""

    model: str
    prompt_ids: Sequence[int]
    max_tokens: int
    sampling: Sampling
    tell: Callable[[Event], None]
    stop: Sequence[str] = ()
    shown: Sequence[str] = ()
    top: int | None = None
    was_left: threading.Event = field(default_factory=threading.Event)
    asked_at: float = field(default_factory=time.perf_counter)


@dataclass(frozen=True)
class Served:
    """A model by the name that clients know, and who answers for it."""

    name: str
    model: LanguageModel
    worker: "Worker"


class _Left(Exception):
    """Nobody waits for the answer any more."""


class Worker:
    """Answers jobs in the order of their coming; at most `queue` of them wait. `models` share a package: that of a
    bundle alone, and with each of its adapters.

    `prompt_bytes` bounds what is kept of earlier prompts, the same share for each. A draft guesses ahead where the
    bundle has one.
    """

    def __init__(self, models: Mapping[str, LanguageModel], queue: int, prompt_bytes: int, metrics: Metrics) -> None:
        self.name, self._models = next(iter(models)), models
        self.created = int(time.time())
        self._queue, self._metrics = queue, metrics
        share = prompt_bytes // len(models)
        self._prefixes = {name: Prefixes(model.session, share) for name, model in models.items()}
        self._waiting: deque[Job] = deque()
        self._running: Job | None = None
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name=f"serve {self.name}", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def submit(self, job: Job) -> None:
        """Let a job wait for its turn. Raises Refusal when too many do."""
        with self._changed:
            if self._closed:
                raise STOPPED
            if len(self._waiting) >= self._queue:
                raise Refusal(
                    429, f"{len(self._waiting)} requests wait for {self.name} already: try again", code="queue_full"
                )
            self._waiting.append(job)
            self._metrics.waiting.labels(self.name).set(len(self._waiting))
            self._changed.notify()

    def leave(self, job: Job) -> None:
        """Nobody waits for its answer any more: it loses its place, or ends at the next call of the package."""
        job.was_left.set()
        with self._changed:
            if job in self._waiting:
                self._waiting.remove(job)
                self._metrics.waiting.labels(self.name).set(len(self._waiting))
                self._metrics.ended(job.model, "left")

    def close(self) -> None:
        """Answer nothing more; what runs or waits is refused."""
        with self._changed:
            self._closed = True
            if self._running is not None:
                self._running.was_left.set()
            waiting = list(self._waiting)
            self._waiting.clear()
            self._changed.notify()
        for job in waiting:
            job.tell(STOPPED)
        self._thread.join()

    def _work(self) -> None:
        while (job := self._next()) is not None:
            try:
                self._answer(job)
            except _Left:
                self._metrics.ended(job.model, "left")
                job.tell(STOPPED)
            except UserError as error:
                self._metrics.ended(job.model, "failed")
                job.tell(Refusal(500, "; ".join(error.problems), code="model_failed"))
            except Exception as error:  # one request must not take the others with it
                self._metrics.ended(job.model, "failed")
                job.tell(Refusal(500, f"the model failed: {describe(error)}", code="model_failed"))

    def _next(self) -> Job | None:
        with self._changed:
            self._running = None
            while not self._waiting and not self._closed:
                self._changed.wait()
            if self._closed:
                return None
            self._running = self._waiting.popleft()
            self._metrics.waiting.labels(self.name).set(len(self._waiting))
            return self._running

    def _answer(self, job: Job) -> None:
        model = self._models[job.model]
        session, prefixes = model.session, self._prefixes[job.model]

        def check() -> None:
            if job.was_left.is_set():
                raise _Left

        session.before_call = check
        check()
        cached = prefixes.prepare(job.prompt_ids)
        self._metrics.kept_bytes.labels(job.model).set(prefixes.bytes)
        witness = Witness(job.sampling, job.top)
        answer = Answer(
            model,
            job.prompt_ids,
            job.max_tokens,
            witness,
            speculates=session.has_draft,
            stop=job.stop,
            shown=job.shown,
        )
        told = 0
        for text in answer:
            job.tell(Piece(text, tuple(witness.picked[told : len(answer.token_ids)])))
            told = len(answer.token_ids)
        if left := witness.picked[told : len(answer.token_ids)]:
            job.tell(Piece("", tuple(left)))
        self._metrics.answered(job.model, answer, cached, time.perf_counter() - job.asked_at)
        job.tell(End(answer.finish_reason or "stop", answer.prompt_tokens, len(answer.token_ids), cached))
