"""The error of this room. A leaf: it imports only the error that the command line prints."""

from coreai_recipes.errors import UserError

# What torch, numpy and Python raise for operands, attributes and shapes that no operation can take. A program is input
# like any other: where an operation is prepared and run, these are its faults.
FAULTS = (ArithmeticError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError, ValueError)


class EvaluationError(UserError):
    """A package that cannot be read or run, or a call that does not fit the function; one sentence."""
