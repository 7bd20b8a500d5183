"""Errors that a user can cause. A leaf: it imports nothing of ours."""

from collections.abc import Iterable
from typing import ClassVar


class Line(str):
    """A finished line of an error, with the code of its problem: stable, whatever the words are."""

    code: str

    def __new__(cls, text: str, code: str) -> "Line":
        line = super().__new__(cls, text)
        line.code = code
        return line


class UserError(Exception):
    """Something the user can mend; the command line prints its lines and exits with status 2, without a traceback.

    `problems` holds one finished line each (place first, then what is wrong, then the fix), all of them at once.
    """

    code: ClassVar[str] = "error"
    """What a line's problem is called that has no code of its own."""

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems

    @property
    def codes(self) -> tuple[str, ...]:
        """The code of each problem."""
        return tuple(problem.code if isinstance(problem, Line) else self.code for problem in self.problems)

    @classmethod
    def collect(cls, problems: Iterable[str]) -> None:
        """Raise with every problem when there is one, else do nothing."""
        found = tuple(problems)
        if found:
            raise cls(*found)


class RecipeError(UserError):
    """A recipe that does not say what it must; each problem is `path:line:column: dotted.field: message`."""

    code = "recipe"


class CheckpointError(UserError):
    """A checkpoint that cannot be read, or that does not hold what the recipe needs."""

    code = "checkpoint"


class BundleError(UserError):
    """A bundle that is missing, modified, or that cannot be written where it was asked for."""

    code = "bundle"


def describe(error: BaseException, limit: int = 200) -> str:
    """Somebody else's exception in one line: its class and the first line of what it says."""
    try:
        said = " ".join(str(error).strip().partition("\n")[0].split())
    except BaseException:  # its __str__ is somebody else's too
        said = ""
    if len(said) > limit:
        said = f"{said[: limit - 3]}..."
    return f"{type(error).__name__}: {said}" if said else type(error).__name__
