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
