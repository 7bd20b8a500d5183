"""Whether two assets of Core AI give the same to the bit: the functions of one in the other, over states that stay.

python -m bench.children.same_answers LINKED WHOLE VOCAB_SIZE [FUNCTION...]
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from coreai_recipes.hosts.logits import choices
from coreai_recipes.running.coreai import CoreAIProgram

# position after position: padding in the first block, tokens one by one, blocks that a ring wraps around
CALLS = (("prefill", 3), ("decode", 0), ("decode", 0), ("score", 1), ("prefill", 0), ("prefill", 2), ("decode", 0))
SEED = 7


def differences(linked: Path, whole: Path, vocab_size: int, calls: Sequence[tuple[str, int]] = CALLS) -> list[str]:
    """What differs, a line each: an output or a state behind one of `calls`, functions and how many of their tokens are
    padding. Logits in pieces are compared without what fills the last piece."""
    programs = CoreAIProgram(linked), CoreAIProgram(whole)
    states = [program.make_state() for program in programs]
    generator, position, found = torch.Generator().manual_seed(SEED), 0, list[str]()
    for name, padding in calls:
        if name not in programs[1].signatures:
            continue
        inputs, count = _inputs(programs[1], name, position, padding, vocab_size, generator)
        ours, theirs = (program.function(name)(inputs, s) for program, s in zip(programs, states, strict=True))
        logits = [choices({"logits": outputs.pop("logits")}, vocab_size) for outputs in (ours, theirs)]
        pairs = {"logits": logits} | {output: [ours[output], theirs[output]] for output in theirs}
        found += [f"{o} of {name} at {position}" for o, pair in pairs.items() if not torch.equal(*pair)]
        found += [f"{s} behind {name} at {position}" for s in states[1] if not torch.equal(states[0][s], states[1][s])]
        position += count
    return found


def _inputs(
    program: CoreAIProgram, name: str, position: int, padding: int, vocab_size: int, generator: torch.Generator
) -> tuple[dict[str, Tensor], int]:
    """A call's inputs, drawn at random, and how many real tokens it has."""
    ports = program.signatures[name]["inputs"]
    tokens = ports["input_ids"][1][1]
    inputs = {
        "input_ids": torch.randint(vocab_size, (1, tokens), generator=generator, dtype=torch.int32),
        "position": torch.tensor([position], dtype=torch.int32),
        "count": torch.tensor([tokens - padding], dtype=torch.int32),
    }
    for other in ports.keys() - inputs.keys():
        inputs[other] = torch.randn(ports[other][1], generator=generator)
    return {port: inputs[port] for port in ports}, tokens - padding


def main(linked: Path, whole: Path, vocab_size: int, functions: list[str]) -> None:
    """With FUNCTIONs, a call of each without padding."""
    calls = [(name, 0) for name in functions] or CALLS
    print(json.dumps(differences(linked, whole, vocab_size, calls)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
