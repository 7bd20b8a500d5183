"""`recipe zoo plan`: cells, bytes, memory and hours before anything runs."""

from typing import Any

from coreai_recipes.errors import UserError
from coreai_recipes.zoo.cluster import local_memory, local_processors, workers_for
from coreai_recipes.zoo.estimating import Estimate, estimate, total_seconds
from coreai_recipes.zoo.loading import Loaded
from coreai_recipes.zoo.running import known_outcomes


def plan_zoo(loaded: Loaded) -> dict[str, Any]:
    """The document of a plan. Nothing is written, read of weights or downloaded; `why` is of a cell that cannot run."""
    known = known_outcomes(loaded)
    memory, processors = local_memory(), local_processors()
    cells: list[dict[str, Any]] = []
    to_build: dict[Any, Estimate] = {}
    for cell in loaded.cells:
        outcome = known.get(cell)
        kept = outcome is not None and outcome.kept
        why = None if outcome is None or kept else outcome.why
        figures: dict[str, Any] = dict.fromkeys(("weights", "bytes", "tokens_per_second", "memory", "seconds"))
        if why is None:
            try:
                found = estimate(cell, memory)
            except UserError as error:
                why = "\n".join(error.problems)
            else:
                figures = {name: getattr(found, name) for name in figures}
                if found.memory > memory:
                    why = f"needs more memory than the {memory / 1e9:.1f} GB here"
                elif not kept:
                    to_build[cell] = found
        cells.append({**cell.to_json(), **figures, "kept": kept, "why": why})
    needs = [each.memory for each in to_build.values()]
    workers = workers_for(needs, memory, processors)
    return {
        "store": loaded.store,
        "cells": cells,
        "kept": sum(cell["kept"] for cell in cells),
        "bytes": sum(each.written for each in to_build.values()),
        "memory": max(needs, default=0),
        "workers": workers,
        "hours": total_seconds(to_build, workers) / 3600,
    }
