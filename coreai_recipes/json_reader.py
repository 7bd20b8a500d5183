"""JSON of a stranger's, bounded in depth. A leaf.

Each Python's parser gives up at a depth of its own, with words about recursion, and whatever walks the values
afterwards (a copy, a comparison, a writer) at another; so the bound is ours, and everywhere the same.
"""

import json
from typing import Any

# The deepest that we know of is a tokenizer.json, with 9.
DEEPEST = 100


def load_json(text: str | bytes, **hooks: Any) -> Any:
    """The JSON document `text`; `hooks` are those of json.loads. Raises ValueError, which says what is wrong."""
    try:
        document = json.loads(text, **hooks)
    except RecursionError:
        document = None
        is_deep = True
    else:
        is_deep = _is_deep(document)
    if is_deep:
        raise ValueError(f"it is nested too deeply: more than {DEEPEST} levels")
    return document


def refuse_constant(word: str) -> None:
    """The hook for NaN and Infinity, which Python reads and no other parser does. Raises ValueError."""
    raise ValueError(f"{word} is not a JSON number")


def _is_deep(document: Any) -> bool:
    level = [document]
    for _ in range(DEEPEST + 1):
        within = [value.values() if isinstance(value, dict) else value for value in level if _is_group(value)]
        if not within:
            return False
        level = [value for group in within for value in group if _is_group(value)]
    return True


def _is_group(value: Any) -> bool:
    return isinstance(value, dict | list)
