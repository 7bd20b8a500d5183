"""The known name that a misspelt word seems to mean."""

from collections.abc import Iterable
from difflib import get_close_matches
from itertools import islice


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known name that `word` seems to mean."""
    close = get_close_matches(word[:100], list(islice(known, 200)), n=1, cutoff=0.7)
    return close[0] if close else None


def did_you_mean(word: str, known: Iterable[str]) -> str | None:
    """The nearest known name, or all of them when none is near and they are few."""
    names = list(known)
    close = nearest(word, names)
    if close:
        return f"did you mean `{close}`?"
    return f"available: {', '.join(names)}" if 0 < len(names) <= 16 else None
