"""The prompts of an audit: what a model is asked, by kind of text, for each reaches other values.

All texts are this project's own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from coreai_recipes.errors import BundleError, UserError
from coreai_recipes.json_reader import load_json
from coreai_recipes.manifest.files import read_regular
from coreai_recipes.verification.tokens import PASSAGE, random_tokens

LONGEST = 192  # tokens of a prompt that are run
REPEATED = 64
MOST_BYTES = 1 << 20
MOST_PROMPTS = 1000

Message = Mapping[str, str]


@dataclass(frozen=True)
class Prompt:
    """A text, or a conversation that goes through the chat template, or one whose last token is `repeated`."""

    name: str
    text: str = ""
    messages: tuple[Message, ...] = ()
    repeated: bool = False


@dataclass(frozen=True)
class TokenSequence:
    """A prompt as tokens."""

    name: str
    token_ids: tuple[int, ...]


def _said(*turns: str) -> tuple[Message, ...]:
    return tuple({"role": ("user", "assistant")[index % 2], "content": turn} for index, turn in enumerate(turns))


BUILT_IN = (
    Prompt("a question", messages=_said("What is the capital of France?")),
    Prompt(
        "a conversation",
        messages=_said(
            "I have six apples and give two away. How many are left?",
            "Four apples are left.",
            "And if each of those is cut into eight pieces?",
        ),
    ),
    Prompt("plain text", text="Once upon a time, in a small village by the sea, there lived"),
    Prompt("digits", text="3.14159265358979323846 2.718281828459045 1,000,000 - 999,999 = 1; 7 x 8 = 56; 2^16 = 65536"),
    Prompt(
        "code",
        text="def fibonacci(n):\n    a, b = 0, 1\n    for _ in range(n):\n        a, b = b, a + b\n    return a\n\n"
        'if __name__ == "__main__":\n    print([fibonacci(i) for i in range(20)])\n',
    ),
    Prompt("markup", text='<ul class="menu"><li><a href="/">Home</a></li></ul> {"name": "box", "size": [1, 2, null]}'),
    Prompt(
        "European scripts",
        text="Луна вращается вокруг Земли. Η Σελήνη περιστρέφεται γύρω από τη Γη. Größe, naïve, žluťoučký kůň",
    ),
    Prompt(
        "Asian scripts",
        text="月亮绕着地球转。月は地球の周りを回っている。달은 지구를 돈다. "
        "चंद्रमा पृथ्वी की परिक्रमा करता है। القمر يدور حول الأرض",
    ),
    Prompt("signs", text="!!! ??? ... --- *** ### $$$ %%% &&& ((( ))) [[[ ]]] 🙂🚀🌍 ½ ≠ ∞ → \t\t\n\n\n   "),
    Prompt("capitals", text="THE QUICK BROWN FOX JUMPS OVER THE LAZY DOG. The quick brown fox jumps over the lazy dog"),
    Prompt("one token repeated", text=" the", repeated=True),
    Prompt("long text", text=PASSAGE),
)  # fmt: skip


class Tokenizer(Protocol):
    """What a bundle's tokenizer does here."""

    def encode(self, text: str) -> list[int]: ...

    def encode_chat(self, messages: Sequence[Any], template: str | None = None) -> list[int]: ...

    @property
    def template_names(self) -> Sequence[str]: ...


def read_prompts(path: Path) -> tuple[Prompt, ...]:
    """The prompts of a file: a line each; or of a .json file, a list of texts and conversations.

    Raises UserError for a file that cannot be read, and with every entry that is no prompt.
    """
    try:
        text = read_regular(path, MOST_BYTES).decode("utf-8")
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path}: there is no such file") from None
    except (UnicodeDecodeError, BundleError) as error:
        raise UserError(f"{path}: is not text in UTF-8" if isinstance(error, ValueError) else str(error)) from None
    if path.suffix == ".json":
        try:
            entries = load_json(text)
        except ValueError as error:
            raise UserError(f"{path}: is not JSON: {error}") from None
    else:
        entries = [line for line in text.splitlines() if line.strip()]
    if not isinstance(entries, list) or not 0 < len(entries) <= MOST_PROMPTS:
        raise UserError(f"{path}: must hold 1 to {MOST_PROMPTS} prompts: a line each, or in .json a list")
    UserError.collect(
        f"{path}: prompt {number} is neither a text nor a conversation, which is a list of "
        '{"role": ..., "content": ...}'
        for number, entry in enumerate(entries, 1)
        if not _is_prompt(entry)
    )
    return tuple(
        Prompt(f"prompt {number}", text=entry)
        if isinstance(entry, str)
        else Prompt(f"prompt {number}", messages=tuple(entry))
        for number, entry in enumerate(entries, 1)
    )


def _is_prompt(entry: Any) -> bool:
    if not isinstance(entry, list):
        return isinstance(entry, str) and bool(entry)
    return bool(entry) and all(_is_message(message) for message in entry)


def _is_message(message: Any) -> bool:
    is_one = isinstance(message, dict) and message.keys() == {"role", "content"}
    return is_one and all(isinstance(word, str) for word in message.values())


def encode(
    prompts: Sequence[Prompt], tokenizer: Tokenizer | None, vocab_size: int, context: int
) -> tuple[list[TokenSequence], list[str]]:
    """The prompts as tokens, at most LONGEST each, and the names of those that the tokenizer cannot take.

    Without a tokenizer they are random.
    """
    longest = min(LONGEST, context)
    if tokenizer is None:
        chosen = random_tokens(vocab_size, longest)
        return [TokenSequence("random tokens", chosen.sequence)], [prompt.name for prompt in prompts]
    found, left_out = [], []
    for prompt in prompts:
        try:
            ids = tokenizer.encode_chat(list(prompt.messages)) if prompt.messages else tokenizer.encode(prompt.text)
        except UserError:  # a template that refuses a conversation, or is not the default
            ids = []
        ids = ids + ids[-1:] * REPEATED if prompt.repeated else ids
        if not ids or max(ids) >= vocab_size:
            left_out.append(prompt.name)
        else:
            found.append(TokenSequence(prompt.name, tuple(ids[:longest])))
    return found, left_out
