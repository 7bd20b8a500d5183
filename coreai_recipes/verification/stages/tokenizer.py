"""The stage `tokenizer`: text and conversations become the same ids through the bundle as through transformers."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from coreai_recipes.checkpoint.auto_tokenizer import NotLoaded, quiet_transformers
from coreai_recipes.checkpoint.base import Checkpoint
from coreai_recipes.errors import UserError
from coreai_recipes.manifest.staging import temporary_folder
from coreai_recipes.tokenizer.bundle_tokenizer import BundleTokenizer
from coreai_recipes.tokenizer.template import TemplateLimitError
from coreai_recipes.tokenizer.tokens import DEFAULT
from coreai_recipes.verification.report import StageResult, skip
from coreai_recipes.verification.subject import Subject
from coreai_recipes.verification.tokens import PASSAGE, PROMPTS

NAME = "tokenizer"
TEXTS = (
    *PROMPTS,
    PASSAGE,
    "",
    " ",
    "  lead, trail  ",
    "\n\n\t\n",
    "a" * 300,
    "I'm sure they'll say it's 1234567.89 or 1e-10 ...",
    "CamelCase snake_case x=y*z; <b>bold</b> & \"quotes\" `ticks` [brackets] {braces}",
    "na\u00efve caf\u00e9 cafe\u0301 \ufb01 \u212b A\u030a \u00bd \u00b2",
    "\u65e5\u672c\u8a9e\u306e\u30c6\u30ad\u30b9\u30c8\u3001\u4f60\u597d \ud55c\uad6d\uc5b4",
    "\u041f\u0440\u0438\u0432\u0435\u0442 \u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627",
    "\u0939\u093f\u0928\u094d\u0926\u0940 \u0663\u0664",
    "\U0001f917 \U0001f469\u200d\U0001f469\u200d\U0001f467 \u2581a\u2581b",
    "\u00a0\u2003\u3000 \ufeff\u200b \x00\x07\x7f \ufffd",
)  # fmt: skip
SYSTEM = {"role": "system", "content": "Be brief, and say \u201cyes\u201d."}
TURNS = (
    {"role": "user", "content": "  What is a < b & \"three\"? <b>\u00e9\u4f60</b>  "},
    {"role": "assistant", "content": "<think>\nhm\n</think>\n\nYes."},
    {"role": "user", "content": "Why?"},
    {"role": "assistant", "content": "Because x + y = z.\n"},
    {"role": "user", "content": "# Then\n\n- list \U0001f917\n- it"},
    {"role": "assistant", "content": ""},
    {"role": "user", "content": "?"},
    {"role": "assistant", "content": "{{ messages }}"},
    {"role": "user", "content": "And 1234?"},
)  # fmt: skip
TOKENIZER = "tokenizer.json"
MAX_TOKENS = 48  # of the added ones, from both ends of the list
Ids = list[int] | str  # or that a conversation is refused


def run(subject: Subject) -> StageResult:
    theirs = subject.weights.load_tokenizer()
    if isinstance(theirs, NotLoaded):
        return skip(NAME, f"transformers cannot load it: {theirs.reason}")
    # a package that is no part of a bundle has no tokenizer beside it
    if subject.package is not None and (subject.package.parent / TOKENIZER).is_file():
        return compare(BundleTokenizer(subject.package.parent), theirs, subject)
    with temporary_folder() as folder:
        subject.weights.write_tokenizer(folder)
        return compare(BundleTokenizer(folder), theirs, subject)


def compare(ours: BundleTokenizer, theirs: Any, subject: Subject) -> StageResult:
    """Hold every probe's ids against each other."""
    rows = subject.recipe.model.vocab_size
    kinds: dict[str, int] = {}
    detail: dict[str, Any] = {"probes": kinds}
    for kind, name, our_ids, their_ids in _probes(ours, theirs, rows, subject.weights):
        try:
            found = our_ids()
        except TemplateLimitError as error:  # transformers would go on for ever
            return StageResult(NAME, False, detail={**detail, "endless": error.reason})
        with quiet_transformers():
            wanted = their_ids()
        kinds[kind] = kinds.get(kind, 0) + 1
        if found != wanted:
            different = {"probe": f"{kind} {name}", "ours": _shown(found), "transformers": _shown(wanted)}
            return StageResult(NAME, False, detail={**detail, "different": different})
    return StageResult(NAME, True, detail=detail)


def _probes(
    ours: BundleTokenizer, theirs: Any, rows: int, weights: Checkpoint
) -> Iterator[tuple[str, str, Callable[[], Ids], Callable[[], Ids]]]:
    """Kind, name, and what makes the ids on either side."""
    special, comparable = _special_texts(theirs, rows), weights.is_comparable
    for kind, texts in (("text", TEXTS), ("special", special)):
        for text in filter(comparable, texts):
            yield kind, repr(text[:40]), partial(_our_text, ours, text), partial(_their_text, theirs, text)
    if ours.end_ids is not None:
        yield "ends", "of an answer", partial(sorted, ours.end_ids), partial(_their_ends, theirs, weights)
    if theirs.chat_template is not None:
        yield "templates", "names", lambda: ", ".join(ours.template_names), lambda: ", ".join(_their_names(theirs))
    for name in ours.template_names:
        # a single template has no name there; a processor's is unknown to transformers' tokenizer
        known = theirs.chat_template
        template = name if isinstance(known, dict) else None if known is not None else ours.template_source(name)
        for messages in (1, 2, 3, 5, 9):
            for before in ((), (SYSTEM,)):
                chat = [*before, *TURNS[:messages]]
                if comparable(_rendered(ours, chat, name)):
                    yield (
                        "chat",
                        f"of {messages} messages{' and a system message' if before else ''} by {name}",
                        partial(_our_chat, ours, chat, name),
                        partial(_their_chat, theirs, chat, template),
                    )


def _their_ends(theirs: Any, weights: Checkpoint) -> Ids:
    """What generation ends at: the ids that the configs name, else the tokenizer's own."""
    return sorted(set(weights.eos_token_ids())) or [id for id in (theirs.eos_token_id,) if id is not None]


def _their_text(theirs: Any, text: str) -> Ids:
    try:
        return list(theirs(text)["input_ids"])
    except Exception:  # tokenizers raises Exception itself
        return "refused"


def _our_text(ours: BundleTokenizer, text: str) -> Ids:
    try:
        return ours.encode(text)
    except UserError:
        return "refused"


def _rendered(ours: BundleTokenizer, chat: list[dict[str, str]], name: str) -> str:
    """The conversation as a text; an empty one where it is refused."""
    try:
        return ours.render(chat, name)
    except UserError:
        return ""


def _our_chat(ours: BundleTokenizer, chat: list[dict[str, str]], template: str) -> Ids:
    try:
        return ours.encode_chat(chat, template)
    except TemplateLimitError:
        raise
    except UserError:
        return "refused"


def _their_chat(theirs: Any, chat: list[dict[str, str]], template: str | None) -> Ids:
    try:
        found = theirs.apply_chat_template(chat, chat_template=template, add_generation_prompt=True, return_dict=False)
    except Exception:  # whatever jinja or the template raises: the conversation is refused
        return "refused"
    return list(found)


def _their_names(theirs: Any) -> list[str]:
    """The names of transformers' templates; a single one has none of its own."""
    found = theirs.chat_template
    return sorted(found) if isinstance(found, dict) else [] if found is None else [DEFAULT]


def _special_texts(theirs: Any, rows: int) -> list[str]:
    """Special and added tokens amid a text, where they are found whole or are not. A class's default token that the
    checkpoint does not have gets an id beyond the table's rows, and no text with it can be asked of the model."""
    added = [token.content for index, token in sorted(theirs.added_tokens_decoder.items()) if index < rows]
    named = [text for text in theirs.all_special_tokens if theirs.convert_tokens_to_ids(text) < rows]
    chosen = dict.fromkeys([*named, *added[:MAX_TOKENS], *added[-MAX_TOKENS:]])
    return [text for token in chosen for text in (f"a{token}b", f" {token} {token}{token}\nb", token[1:])]


def _shown(ids: Ids) -> Ids:
    return ids if isinstance(ids, str) else ids[:40]
