"""One case at least for each registered operation: how MIL builds it, and what torch says the result is.

A case's operation is its name up to the first space. `inputs` are the values of the program's inputs; everything else
that a builder is given is a constant.
"""

import arithmetic_cases  # noqa: F401  (fills the list)
import layout_cases  # noqa: F401
from operation_case import CASES, Case

__all__ = ["CASES", "Case"]
