"""The error of this room. A leaf: it imports only the error that the command line prints."""

from coreai_recipes.errors import UserError


class EvaluationError(UserError):
    """A package that cannot be read or run, or a call that does not fit the function; one sentence."""
