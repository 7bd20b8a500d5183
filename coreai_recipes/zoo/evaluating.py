"""`recipe evaluate --scheduler`: each text is a task, and all of them together are one result."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from coreai_recipes.bundle.opened import Bundle
from coreai_recipes.scoring.scoring import Evaluated, Progress, evaluate
from coreai_recipes.zoo.cluster import open_cluster, result_of


def evaluate_on(
    scheduler: str,
    bundle: Bundle,
    texts: Sequence[tuple[str, str]],
    checkpoint: str | None = None,
    window: int | None = None,
    progress: Progress | None = None,
    adapters: Mapping[str, str] | None = None,
) -> Evaluated:
    """As `scoring.evaluate`, by the workers behind `scheduler`, who see bundle and checkpoint at the same paths.

    Raises UserError as that does, where no scheduler answers, and for workers of other versions.
    """
    place, source = bundle.path.resolve(), None if checkpoint is None else _everywhere(checkpoint)
    merged = {name: _everywhere(adapter) for name, adapter in (adapters or {}).items()}
    with open_cluster(scheduler, []) as cluster:
        tasks = [
            cluster.client.submit(evaluate_text, str(place), text, source, window, merged, pure=False) for text in texts
        ]
        found: list[Evaluated] = []
        for task in tasks:
            found.append(result_of(task))
            if progress is not None:
                progress("texts", len(found), len(tasks))
    whole = tuple(scored for each in found for scored in each.texts)
    return replace(found[0], path=str(bundle.path), texts=whole)


def evaluate_text(
    bundle: str, text: tuple[str, str], checkpoint: str | None, window: int | None, adapters: Mapping[str, str]
) -> Evaluated:
    """One text, on a worker."""
    return evaluate(Bundle.open(bundle), [text], checkpoint, window, adapters=adapters)


def _everywhere(source: str) -> str:
    """A path that is here as it is from any folder; anything else as it is."""
    return str(Path(source).resolve()) if os.path.exists(source) else source
