"""The text that weights are fitted to, as windows of tokens: files of the user's, or the ones that lie in `texts`."""

import codecs
from collections.abc import Iterator, Sequence
from pathlib import Path

from coreai_recipes.errors import RecipeError, UserError
from coreai_recipes.recipe.loader import Resolved
from coreai_recipes.recipe.plain import Problem
from coreai_recipes.recipe.schema import Calibration, Recipe
from coreai_recipes.tokenizer.bundle_tokenizer import LARGEST_TEXT, BundleTokenizer
from coreai_recipes.tokenizer.files import FileError, read_object
from coreai_recipes.tokenizer.tokens import TOKENIZER

FIELD = ("compress", "calibration", "text")
NAME = ".".join(FIELD)
WINDOW = 512  # tokens that are seen together
MOST_UNKNOWN = 0.1
MANY_TOKENS = 0.6  # of a byte: words in a language that the tokenizer knows take a quarter of a token
TO_MEND = "name files of text that the model reads, or `calibration: null` for none"


def default_texts() -> list[Path]:
    """The files of the default, a kind of text each."""
    return sorted((Path(__file__).parent / "texts").glob("*.txt"))


def hold_texts(recipe: Recipe, written: Resolved | None) -> None:
    """Raise RecipeError for each file of the recipe's calibration that is not there, with its place where the recipe
    was `written`."""
    named = recipe.compress.calibration.text if recipe.compress and recipe.compress.calibration else "default"
    if isinstance(named, str):
        return
    folder = folder_of(written)
    problems = [
        Problem(
            (*FIELD, number), "text-missing", f"`{name}`: no such file in {folder}", "paths are relative to the recipe"
        )
        for number, name in enumerate(named)
        if not (folder / name).is_file()
    ]
    if problems and written is not None:
        raise RecipeError(*written.describe(problems))
    RecipeError.collect(f"{'.'.join(map(str, p.location))}: {p.message}" for p in problems)


def folder_of(written: Resolved | None) -> Path:
    """From where a recipe's files of text are seen: the folder of the file that names them."""
    place = None if written is None else written.file_of(FIELD)
    return Path() if place is None else place.parent


def read_windows(
    calibration: Calibration, tokenizer: Path, context: int, folder: Path = Path()
) -> tuple[list[list[int]], tuple[str, ...]]:
    """Token ids in windows of one length, of each file in turn, by the tokenizer in that folder; and what is to be
    said of them. Raises UserError for a text that is too short, or that the tokenizer cannot read."""
    is_default = isinstance(calibration.text, str)
    paths = default_texts() if isinstance(calibration.text, str) else [folder / name for name in calibration.text]
    backend = BundleTokenizer(tokenizer)
    texts = [_read(path) for path in paths]
    encoded = [backend.encode(text, add_special_tokens=False) for text in texts]
    found = sum(map(len, encoded))
    unknown, unknown_id = 0.0, _unknown_id(tokenizer)
    if unknown_id is not None and found:
        unknown = sum(ids.count(unknown_id) for ids in encoded) / found
    if unknown > MOST_UNKNOWN:
        raise UserError(f"{NAME}: {unknown:.0%} of its tokens are the tokenizer's unknown token\n  {TO_MEND}")
    before = _before(backend)
    window = min(WINDOW, context)
    windows = [before + ids for ids in _cut(encoded, window - len(before))][: max(calibration.tokens // window, 1)]
    notes = []
    if (len(windows) * window < calibration.tokens - window + 1 and not is_default) or not windows:
        raise UserError(
            f"{NAME}: {found:,} tokens, but {calibration.tokens:,} are asked for\n"
            "  add text, or ask for fewer with `compress.calibration.tokens`"
        )
    size = sum(len(text.encode()) for text in texts)
    if found > MANY_TOKENS * size:
        notes.append(
            f"{NAME}: {found / size:.2f} tokens per byte: the tokenizer spells this text out, so the model is fitted "
            "to text that it hardly reads"
        )
    return windows, tuple(notes)


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST_TEXT)
    except OSError as error:
        raise UserError(f"{NAME}: {path} cannot be read: {error.strerror or error}") from None
    try:
        return codecs.getincrementaldecoder("utf-8")().decode(data, final=len(data) < LARGEST_TEXT)
    except UnicodeDecodeError as error:
        raise UserError(f"{NAME}: {path} is not UTF-8: {error}") from None


def _cut(encoded: Sequence[list[int]], length: int) -> Iterator[list[int]]:
    """Windows of each text in turn, then of what was left of all."""
    count = max((len(ids) // length for ids in encoded), default=0)
    for number in range(count):
        for ids in encoded:
            if (number + 1) * length <= len(ids):
                yield ids[number * length : (number + 1) * length]
    rest = [token for ids in encoded for token in ids[len(ids) // length * length :]]
    for first in range(0, len(rest) - length + 1, length):
        yield rest[first : first + length]


def _before(tokenizer: BundleTokenizer) -> list[int]:
    """What the tokenizer puts before a text, most often its bos."""
    plain, whole = tokenizer.encode("a", add_special_tokens=False), tokenizer.encode("a")
    starts = (at for at in range(len(whole)) if whole[at : at + len(plain)] == plain)
    return whole[: next(starts, 0)]


def _unknown_id(folder: Path) -> int | None:
    """The id that stands for what the tokenizer does not know, if it has one."""
    try:
        model = read_object(folder / TOKENIZER).get("model")
    except FileError:
        return None
    if not isinstance(model, dict):
        return None
    if isinstance(model.get("unk_id"), int):
        return int(model["unk_id"])
    vocabulary, unknown = model.get("vocab"), model.get("unk_token")
    found = vocabulary.get(unknown) if isinstance(vocabulary, dict) and isinstance(unknown, str) else None
    return found if isinstance(found, int) else None
