"""Milliseconds of a decode step of a bundle's package, evaluated in float32.

python -m bench.children.evaluator_step BUNDLE POSITION THREADS STEPS
"""

import json
import sys
import time
from pathlib import Path
from statistics import median

import torch

from coreai_recipes.bundle import Bundle
from coreai_recipes.evaluate import Program
from coreai_recipes.hosts.logits import best, choices

WARM_UP = 5


def main(bundle: Path, position: int, threads: int, steps: int) -> None:
    torch.set_num_threads(threads)
    opened = Bundle.open(bundle)
    program = Program(opened.package)
    state = program.make_state()
    ids = torch.arange(1000, 1000 + position + 1, dtype=torch.int32)
    queries = opened.recipe.export.functions.queries["prefill"]
    prefill = program.function("prefill")
    for start in range(0, position, queries):
        chunk = ids[start : min(start + queries, position)]
        padded = torch.nn.functional.pad(chunk, (0, queries - len(chunk)))
        at, count = (torch.tensor([value], dtype=torch.int32) for value in (start, len(chunk)))
        prefill({"input_ids": padded[None], "position": at, "count": count}, state)
    decode = program.function("decode")
    inputs = {"input_ids": ids[None, position:], "position": torch.tensor([position], dtype=torch.int32)}
    taken = []
    for _ in range(WARM_UP + steps):
        started = time.perf_counter()
        outputs = decode(inputs, state)  # at the same position again: a full cache's exact rollback
        taken.append(time.perf_counter() - started)
    next_token = best(choices(outputs, opened.recipe.model.vocab_size)[-1])
    print(json.dumps({"milliseconds": 1000 * median(taken[WARM_UP:]), "next_token": next_token}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:5]))
