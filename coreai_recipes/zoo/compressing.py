"""`recipe compress --scheduler`: the forms of each matrix are measured by a task."""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from coreai_recipes.search.predicting import Job, Measured, Measuring, measure_all
from coreai_recipes.zoo.cluster import open_cluster, result_of

AHEAD = 2  # tasks for each worker that are given out before the first of them must be done


@contextmanager
def measuring_on(scheduler: str) -> Iterator[Measuring]:
    """What measures by the workers behind `scheduler`, who need neither the recipe nor its checkpoint.

    Raises UserError where no scheduler answers, and for workers of other versions.
    """
    with open_cluster(scheduler, []) as cluster:

        def measuring(jobs: Iterator[Job]) -> Iterator[tuple[str, Measured]]:
            waiting: deque[tuple[str, Any]] = deque()
            for job in jobs:
                held = cluster.client.scatter(job, hash=False)
                waiting.append((job.name, cluster.client.submit(measure_all, held, pure=False)))
                if len(waiting) >= AHEAD * cluster.workers:
                    name, task = waiting.popleft()
                    yield name, result_of(task)
            for name, task in waiting:
                yield name, result_of(task)

        yield measuring
