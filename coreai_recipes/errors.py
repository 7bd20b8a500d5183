"""Errors that a user can cause. A leaf: it imports nothing of ours."""

from collections.abc import Iterable


class UserError(Exception):
    """Something the user can mend; the command line prints its lines and exits with status 2, without a traceback.

    `problems` holds one finished line each (place first, then what is wrong, then the fix), all of them at once.
    """

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems

    @classmethod
    def collect(cls, problems: Iterable[str]) -> None:
        """Raise with every problem when there is one, else do nothing."""
        found = tuple(problems)
        if found:
            raise cls(*found)


class RecipeError(UserError):
    """A recipe that does not say what it must; each problem is `path:line:column: dotted.field: message`."""


class CheckpointError(UserError):
    """A checkpoint that cannot be read, or that does not hold what the recipe needs."""


class BundleError(UserError):
    """A bundle that is missing, modified, or that cannot be written where it was asked for."""


def describe(error: BaseException, limit: int = 200) -> str:
    """Somebody else's exception in one line: its class and the first line of what it says."""
    try:
        said = " ".join(str(error).strip().partition("\n")[0].split())
    except BaseException:  # its __str__ is somebody else's too
        said = ""
    if len(said) > limit:
        said = f"{said[: limit - 3]}..."
    return f"{type(error).__name__}: {said}" if said else type(error).__name__
