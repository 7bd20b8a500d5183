"""Evaluates each argument with what a test of the hub needs, and prints the results as JSON."""

import json
import sys

from coreai_recipes.checkpoint import open_checkpoint, open_headers  # noqa: F401
from coreai_recipes.checkpoint.hub import fetch_snapshot  # noqa: F401
from coreai_recipes.errors import CheckpointError


def evaluate(call: str) -> str:
    try:
        return str(eval(call))
    except CheckpointError as error:
        return "refused: " + "\n".join(error.problems)


print(json.dumps([evaluate(call) for call in sys.argv[1:]]))
