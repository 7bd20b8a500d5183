"""A user's texts, as tokens and in windows."""

from collections.abc import Sequence
from dataclasses import dataclass

from coreai_recipes.errors import UserError
from coreai_recipes.tokenizer.bundle_tokenizer import LARGEST_TEXT, BundleTokenizer

MOST_BYTES = LARGEST_TEXT  # of a text
MOST_UNKNOWN = 0.1  # of a text's tokens
SPELT_BYTES = 1.5  # a token, of a text that is spelt out byte by byte


@dataclass(frozen=True)
class Text:
    """Tokens of a text in windows, each behind what the tokenizer puts before a text; `note` says what is odd."""

    name: str
    tokens: int
    windows: tuple[tuple[int, ...], ...]
    note: str | None = None


def cut_texts(texts: Sequence[tuple[str, str]], tokenizer: BundleTokenizer, vocab_size: int, window: int) -> list[Text]:
    """The texts in windows of at most `window` tokens. Raises UserError with every one that cannot be evaluated."""
    found: list[Text] = []
    problems: list[str] = []
    for name, text in texts:
        plain = tokenizer.encode(text, add_special_tokens=False)
        before = _before(tokenizer.encode(text), plain)
        problem = _problem(tokenizer, plain, vocab_size)
        if problem:
            problems.append(f"{name}: {problem}")
            continue
        step = window - len(before)
        if step < 2:
            raise UserError(f"--window {window}: holds {len(before)} tokens that precede every text, and no text")
        parts = [plain[start : start + step] for start in range(0, len(plain), step)]
        if len(before + parts[-1]) < 2:
            parts.pop()  # a token that nothing is before
        windows = tuple((*before, *part) for part in parts)
        found.append(Text(name, len(plain), windows, _note(text, len(plain))))
    UserError.collect(problems)
    return found


def _before(whole: list[int], plain: list[int]) -> list[int]:
    """What stands before a text's own tokens."""
    for count in range(len(whole) - len(plain) + 1):
        if whole[count : count + len(plain)] == plain:
            return whole[:count]
    return []  # it is no prefix: the text is taken as it is


def _problem(tokenizer: BundleTokenizer, plain: list[int], vocab_size: int) -> str | None:
    if len(plain) < 2:
        return f"is {len(plain)} token{'' if len(plain) == 1 else 's'}, and perplexity needs at least two"
    if max(plain) >= vocab_size:
        return f"its tokenizer gives the token {max(plain)}, the model has {vocab_size}: it belongs to another model"
    unknown = tokenizer.unknown_id
    share = 0.0 if unknown is None else plain.count(unknown) / len(plain)
    if share > MOST_UNKNOWN:
        return f"{share:.0%} of its tokens are unknown to the tokenizer: the model was not made for its script"
    return None


def _note(text: str, tokens: int) -> str | None:
    """What is said of a text whose script the tokenizer has no words for."""
    size = len(text.encode())
    if text.isascii() or size / tokens >= SPELT_BYTES or tokens < len(text):
        return None
    return (
        f"{tokens:,} tokens for {len(text):,} characters: the tokenizer spells this script out byte by byte, and "
        "figures say little of it"
    )
