"""Loading plugins: a user's Python files (`recipe --plugin FILE`) and installed packages (entry points).

A plugin is a module that registers primitives and activations as it is imported (`coreai_recipes.extending`). Installed
ones are loaded when the first recipe or config is read, so that a command that reads none starts at once. Of ours it
imports leaves alone.
"""

import os
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import cache
from importlib.machinery import SourceFileLoader
from importlib.metadata import EntryPoint, entry_points
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path

from coreai_recipes.errors import UserError, describe
from coreai_recipes.recipe.kinds import count_added

GROUP = "coreai_recipes.primitives"

_loaded: list[Path] = []  # the resolved files
_installed: list[Path] = []  # the files and folders of installed packages


class PluginError(UserError):
    """A plugin that cannot be loaded; the message begins with its file, or its name when it is installed."""


def load_plugin(path: str | Path) -> None:
    """Import a user's file, once. Raises PluginError in one sentence, whatever is wrong with it."""
    try:
        file = Path(os.path.realpath(path))
    except (OSError, ValueError) as error:  # a relative path in a folder that was removed; a zero byte
        raise PluginError(f"{path}: no such file: {error}") from None
    if file in _loaded:
        return
    if not os.path.isfile(file):
        raise PluginError(f"{path}: {'a folder, not a Python file' if os.path.isdir(file) else 'no such file'}")
    name = f"recipe_plugin_{file.stem}"
    if name in sys.modules:
        raise PluginError(f"{path}: another plugin has a file of that name: {sys.modules[name].__file__}")
    loader = SourceFileLoader(name, str(file))
    spec = spec_from_loader(name, loader)
    if spec is None:
        raise PluginError(f"{path}: is not valid Python")
    module = module_from_spec(spec)
    sys.modules[name] = module  # pydantic looks the names of annotations up there, and `inspect` the source
    before = count_added()
    try:
        _import(lambda: loader.exec_module(module), str(path), file)
        if count_added() == before:
            raise PluginError(f"{path}: registers nothing: use `register` of coreai_recipes.extending")
    except PluginError:
        del sys.modules[name]
        raise
    _loaded.append(file)


@cache
def load_installed() -> None:
    """Import the plugins of installed packages, once. Raises PluginError for the first that cannot be."""
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name):
        _import(entry.load, _describe(entry))
        package = sys.modules[entry.module.partition(".")[0]]
        _installed.extend(map(Path, getattr(package, "__path__", None) or [str(package.__file__)]))


def plugin_folders() -> tuple[Path, ...]:
    """The folders of the files that were loaded: weight names may stand beside them."""
    return tuple(dict.fromkeys(path.parent for path in _loaded))


def blame(error: BaseException) -> PluginError | None:
    """The sentence for what a plugin's own code raised while it was used, with its line; None for anybody else's."""
    cause: BaseException | None = error
    seen: set[int] = set()
    while cause is not None and id(cause) not in seen:  # causes may lead in a circle
        seen.add(id(cause))
        for frame in reversed(traceback.extract_tb(cause.__traceback__)):
            path = Path(frame.filename)
            if path in _loaded or any(path.is_relative_to(place) for place in _installed):
                return PluginError(f"{_at(frame.filename, frame.lineno)}: raises {describe(cause)}")
        cause = cause.__cause__ or cause.__context__
    return None


def _import(load: Callable[[], object], place: str, file: Path | None = None) -> None:
    """Run `load`; what it raises becomes one sentence that begins with `place` and the line of `file`."""
    try:
        with redirect_stdout(sys.stderr):  # standard output may be a JSON document
            load()
    except SyntaxError as error:
        raise PluginError(f"{_at(place, error.lineno)}: is not valid Python: {error.msg}") from None
    except UserError as error:
        raise PluginError(f"{_at(place, _line(error, file))}: {error}") from None
    except BaseException as error:
        if _is_ctrl_c(error):
            raise
        raise PluginError(f"{_at(place, _line(error, file))}: raises {describe(error)}") from None


def _is_ctrl_c(error: BaseException) -> bool:
    """Whether somebody wants to stop, and not a plugin that raises KeyboardInterrupt: the answer to a signal raises it,
    and where that is Python's own, which has no frame, nothing tells the two apart."""
    if not isinstance(error, KeyboardInterrupt):
        return False
    answer = signal.getsignal(signal.SIGINT)
    code = getattr(answer, "__code__", None)
    frames = [frame.f_code for frame, _ in traceback.walk_tb(error.__traceback__)]
    return code is None or code in frames


def _line(error: BaseException, file: Path | None) -> int | None:
    """The line of `file` that an error came from."""
    frames = traceback.extract_tb(error.__traceback__)
    return next((frame.lineno for frame in reversed(frames) if file and frame.filename == str(file)), None)


def _at(place: str, line: int | None) -> str:
    return place if line is None else f"{place}:{line}"


def _describe(entry: EntryPoint) -> str:
    package = f"{entry.dist.name} {entry.dist.version}" if entry.dist is not None else "an installed package"
    return f"plugin `{entry.name}` of {package}"
