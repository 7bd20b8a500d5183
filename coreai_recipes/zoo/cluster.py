"""Dask: a cluster of this machine's, or a user's own, with workers that are like this process."""

import logging
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from coreai_recipes.errors import UserError, describe
from coreai_recipes.verification.memory import machine_bytes
from coreai_recipes.zoo.extra import check_extra
from coreai_recipes.zoo.identity import cluster_versions
from coreai_recipes.zoo.working import version_problems

MEMORY = "memory"  # a resource of dask's, in bytes
DEATHS = 3  # workers that a cell may take with it before it is given up
# in which a worker that died is started anew: after dask's own 15 s a busy machine would be left without any
BACK_WITHIN = "30 minutes"
ANSWER_SECONDS = 10
LOOPBACK = "127.0.0.1"
KEPT_FREE = 0.1  # of this machine's memory, for everything else


@dataclass(frozen=True)
class Cluster:
    """A connection to a scheduler. `memory` is what the largest worker says it has, in bytes, None where none does;
    `shares` whether all workers declare it, so that the scheduler can deal it out. `threads` is what a build may take
    of torch's, None where that is the workers' own matter."""

    client: Any
    workers: int
    memory: int | None
    shares: bool
    threads: int | None

    def resources(self, memory: int) -> dict[str, int] | None:
        """What a task of so many bytes asks of a worker."""
        return {MEMORY: memory} if self.shares else None


@contextmanager
def open_cluster(scheduler: str | None, needs: Sequence[int]) -> Iterator[Cluster]:
    """The cluster behind the address of a scheduler, or one on this machine for tasks of so many bytes each.

    Raises UserError where no scheduler answers, and with each worker that is not like this process.
    """
    check_extra()
    if scheduler is not None:
        with _connect(scheduler) as client:
            yield _described(client, scheduler)
        return
    with _local_cluster(needs) as (client, threads):
        yield _described(client, "the local cluster", threads)


def result_of(task: Any) -> Any:
    """What a task returned or raised. Raises UserError where it was lost with its workers."""
    from distributed import KilledWorker

    try:
        return task.result()
    except KilledWorker:
        raise UserError("--scheduler: workers died one after the other of a task: perhaps for want of memory") from None


def workers_for(needs: Sequence[int], memory: int, processors: int) -> int:
    """How many workers share a machine, each with an equal part of its memory: as many as let the largest task run that
    can run here at all."""
    fitting = [need for need in needs if need <= memory]
    largest = max(fitting, default=memory)
    return max(1, min(processors, len(needs), memory // max(1, largest)))


def local_memory() -> int:
    """Bytes that the builds on this machine may take together."""
    return int(machine_bytes() * (1 - KEPT_FREE))


def local_processors() -> int:
    """The processors that this process may use; macOS tells of all."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _local_cluster(needs: Sequence[int]) -> Iterator[tuple[Any, int]]:
    import dask
    from distributed import Client, LocalCluster

    _quiet_tracker()
    memory, processors = local_memory(), local_processors()
    workers = workers_for(needs, memory, processors)
    threads = max(1, processors // workers)
    environment = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    settings = {
        "distributed.scheduler.allowed-failures": DEATHS,
        "distributed.deploy.lost-worker-timeout": BACK_WITHIN,
        "distributed.nanny.pre-spawn-environ": environment,
        "distributed.admin.log-format": "%(message)s",
    }
    with (
        dask.config.set(settings),
        _deaf_loop() as loop,
        LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=True,
            host=LOOPBACK,
            dashboard_address=f"{LOOPBACK}:0",
            worker_dashboard_address=f"{LOOPBACK}:0",
            memory_limit=0,  # a task's figure of memory is an estimate: nothing is killed for passing it
            resources={MEMORY: memory // workers},
            silence_logs=logging.CRITICAL,
            loop=loop,
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client, threads


@contextmanager
def _deaf_loop() -> Iterator[Any]:
    """A loop of events in a thread, whose child processes do not hear a terminal's Ctrl-C: it goes to all of them, and
    this process stops them, so that none has a traceback to show."""
    from distributed.utils import LoopRunner

    runner = LoopRunner()
    heard = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        runner.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, heard)
    try:
        yield runner.loop
    finally:
        runner.stop()


def _quiet_tracker() -> None:
    """Start the process that unlinks what a worker leaves behind when it is killed, with nothing to say of it: a bar of
    tqdm's is a semaphore."""
    from multiprocessing import resource_tracker

    before = os.environ.get("PYTHONWARNINGS")
    os.environ["PYTHONWARNINGS"] = "ignore::UserWarning:multiprocessing.resource_tracker"
    try:
        resource_tracker.ensure_running()
    finally:
        if before is None:
            del os.environ["PYTHONWARNINGS"]
        else:
            os.environ["PYTHONWARNINGS"] = before


@contextmanager
def _connect(address: str) -> Iterator[Any]:
    from distributed import Client

    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # what goes wrong is said here
    try:
        client = Client(address, timeout=ANSWER_SECONDS, set_as_default=False)
    except (OSError, ValueError, ImportError) as error:
        reason = describe(error.__cause__ or error, 120)
        raise UserError(
            f"--scheduler {address}: no scheduler answers ({reason}): start one with `dask scheduler`, or leave it out"
        ) from None
    with client:
        yield client


def _described(client: Any, name: str, threads: int | None = None) -> Cluster:
    """Raises UserError for a cluster that cannot build."""
    try:
        client.wait_for_workers(1, timeout=ANSWER_SECONDS)
    except TimeoutError:
        raise UserError(f"--scheduler {name}: has no workers: start some with `dask worker {name}`") from None
    found: Mapping[str, Any] = client.scheduler_info(n_workers=-1)["workers"]
    UserError.collect([*_unlike(client), *_crowded(found)])
    declared = [each.get("resources", {}).get(MEMORY) for each in found.values()]
    limits = [each.get("memory_limit") for each in found.values()]
    shares = all(each is not None for each in declared)
    sizes = [int(each) for each in (declared if shares else limits) if each]
    return Cluster(client, len(found), max(sizes, default=None), shares, threads)


def _unlike(client: Any) -> Iterator[str]:
    """Workers with other versions: the same cell would not give the same bytes there."""
    answers = client.run(version_problems, cluster_versions(), on_error="return")
    for address, answer in sorted(answers.items()):
        if isinstance(answer, BaseException):
            yield f"worker {address}: has no coreai-recipes that answers ({describe(answer, 120)}): install it there"
        elif answer:
            yield f"worker {address}: has other versions: {'; '.join(answer)}: install the same there"


def _crowded(workers: Mapping[str, Any]) -> Iterator[str]:
    for address, each in sorted(workers.items()):
        if each.get("nthreads", 1) != 1:
            yield f"worker {address}: runs {each['nthreads']} tasks at once in one process: start it with --nthreads 1"
