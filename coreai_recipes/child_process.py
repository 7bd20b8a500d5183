"""A process of its own that runs a function of this project, with the paths that this one imports from."""

import json
import os
import sys
from typing import BinaryIO

COMMAND = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from {module} import {function}; "
    "{function}(*sys.argv[2:])"
)


def command_of(module: str, function: str, *arguments: str) -> list[str]:
    """What starts a Python that calls `function` of `module` with `arguments`."""
    return [sys.executable, "-c", COMMAND.format(module=module, function=function), json.dumps(sys.path), *arguments]


def take_output() -> BinaryIO:
    """In that process: standard output for its answers alone. Whatever else is printed goes where errors go."""
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return output
