"""What a fragment is traced from, described so that a conversion is known again, and the files that it depends on."""

import inspect
import sys
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn


class Piece(nn.Module):
    """A wrapper to be traced. The wrapped modules are held in a tuple: their parameters come in as inputs instead."""

    def __init__(self, *piece: nn.Module) -> None:
        super().__init__()
        self.piece = piece


def describe(module: nn.Module) -> list[Any]:
    """The classes of a module tree and every plain value they hold, as JSON that is the same in every process."""
    if isinstance(module, Piece):
        return [_plain(module), *(describe(part) for part in module.piece)]
    return [[name, _plain(part)] for name, part in module.named_modules()]


def _plain(module: nn.Module) -> list[Any]:
    """A module's class and its public plain values; functions by name, for their address differs in each process."""
    kept: dict[str, Any] = {}
    for name, value in sorted(vars(module).items()):
        if name.startswith("_") or name in ("training", "piece"):
            continue
        if isinstance(value, partial):
            kept[name] = [value.func.__qualname__, repr(value.args), repr(value.keywords)]
        elif callable(value):
            kept[name] = value.__qualname__
        else:
            kept[name] = repr(value)
    return [f"{type(module).__module__}.{type(module).__qualname__}", kept]


def source_files(module: nn.Module) -> set[Path]:
    """The files in which the classes of a module tree and the functions that they hold are written.

    Of a package that is neither ours nor torch, a plugin's, that is every file: one module may call another.
    """
    pieces = module.piece if isinstance(module, Piece) else (module,)
    parts = [part for piece in pieces for part in piece.modules()]
    written: list[Any] = [base for part in parts for base in type(part).__mro__]
    written += [each for part in parts for each in vars(part).values() if inspect.isfunction(each)]
    return set().union(*(_files_of(name) for name in {each.__module__ for each in written}))


def _files_of(module: str) -> set[Path]:
    """The files of a module, and of the package that it is in."""
    top = module.partition(".")[0]
    if top in ("builtins", "torch"):
        return set()
    package = None if top == "coreai_recipes" else getattr(sys.modules[top], "__path__", None)
    own = {Path(str(sys.modules[module].__file__))}
    return own.union(*(Path(folder).rglob("*.py") for folder in package or ()))
