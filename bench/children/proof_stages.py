"""The stages of a bundle's proof, each with its seconds and the processor seconds of this process.

python -m bench.children.proof_stages BUNDLE CHECKPOINT
"""

import json
import sys
import time
from typing import Any

from coreai_recipes.bundle import verify
from coreai_recipes.verification import run
from coreai_recipes.verification.report import StageResult
from coreai_recipes.verification.subject import Subject


def main(bundle: str, checkpoint: str) -> dict[str, dict[str, float]]:
    """By stage, for those that were not skipped."""
    found: dict[str, dict[str, float]] = {}
    run_stage = run.run_stage

    def timed(name: str, subject: Subject) -> StageResult:
        started, before = time.perf_counter(), time.process_time()
        result = run_stage(name, subject)
        if result.skipped is None:
            taken: dict[str, Any] = {"seconds": time.perf_counter() - started}
            found[name] = {**taken, "processor_seconds": time.process_time() - before}
        return result

    run.run_stage = timed
    try:
        verify(bundle, checkpoint)
    finally:
        run.run_stage = run_stage
    return found


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
