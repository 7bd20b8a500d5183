"""The tokenizer of a bundle's folder."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coreai_recipes.errors import BundleError, UserError
from coreai_recipes.json_reader import load_json
from coreai_recipes.tokenizer.files import FileError, read_text
from coreai_recipes.tokenizer.streaming import TextStream
from coreai_recipes.tokenizer.tokens import DEFAULT, TOKENIZER, TOKENS, Tokens, read_tokens

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from coreai_recipes.tokenizer.template import ChatTemplate, Message

# Half a million words. A byte may be a token, and two million tokens take half a GB and two seconds to be found.
LARGEST_TEXT = 2 << 20
GIVEN = ("messages", "tools", "documents", "add_generation_prompt")  # to every chat template, by us
MOST_EXPLAINED = 1 << 20  # values, of some 250 bytes each once they are parsed


class BundleTokenizer:
    """tokenizer.json with what tokens.json says of it, and the chat templates.

    Raises BundleError when tokenizer.json is missing or one of the files cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._tokens = read_tokens(path)
        self._backend = open_tokenizer(path, self._tokens)
        self._compiled: dict[str, ChatTemplate] = {}

    @property
    def end_ids(self) -> list[int] | None:
        """The ids that end an answer; None in a bundle without tokens.json, whose manifest alone says them."""
        return list(self._tokens.end_tokens) if (self._path / TOKENS).exists() else None

    @property
    def unknown_id(self) -> int | None:
        """The token of what the vocabulary has no other for; None where it can spell everything."""
        name = getattr(self._backend.model, "unk_token", None)
        return None if name is None or getattr(self._backend.model, "byte_fallback", False) else self._id_of(str(name))

    def _id_of(self, token: str) -> int | None:
        found: int | None = self._backend.token_to_id(token)
        return found

    @property
    def has_template(self) -> bool:
        return bool(self._tokens.chat_templates)

    @property
    def template_names(self) -> list[str]:
        return sorted(self._tokens.chat_templates)

    def template_source(self, name: str) -> str:
        return self._tokens.chat_templates[name]

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Plain text, with the special tokens that the tokenizer puts around it (a bos, most often).

        Raises UserError for more than LARGEST_TEXT bytes, and for what is no text.
        """
        check_size((text,))
        # a terminal or a pipe may give bytes that are no text, which tokenizers refuses in Python's words
        if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
            raise UserError("the prompt holds bytes that are not UTF-8, or half of a surrogate pair: remove them")
        try:
            return list(self._backend.encode(text, add_special_tokens=add_special_tokens).ids)
        except Exception as error:  # a vocabulary without the unknown token that it names, and the like
            raise UserError(f"{self._path}: its tokenizer cannot encode the text: {error}") from None

    def encode_chat(
        self,
        messages: Sequence["Message"],
        template: str | None = None,
        variables: Mapping[str, Any] | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> list[int]:
        """A conversation up to where the answer begins, by the template of that name or the default one; without a
        chat template, its messages line by line. `tools` are functions as JSON schemas describe them.

        Raises BundleError when the template refuses it, and UserError for a name that there is not.
        """
        if not self._tokens.chat_templates and template is None:
            return self.encode("\n".join(message["content"] for message in messages))
        return self.encode(self.render(messages, template, variables, tools), add_special_tokens=False)

    def render(
        self,
        messages: Sequence["Message"],
        template: str | None = None,
        variables: Mapping[str, Any] | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> str:
        """The text of a conversation, by a template that is given `variables`. Raises as `encode_chat` does."""
        check_size(message["content"] for message in messages)
        return self._choose(template).render(messages, variables, tools)

    def check_template(self, name: str | None, variables: Mapping[str, Any] | None = None) -> None:
        """Raise UserError when there is no template of that name, none named where the bundle has no default, and for
        variables that no template is there for, or that it is given by what asks it."""
        names = self.template_names
        if variables and not names:
            raise UserError(f"{self._path}: has no chat template for the variables {', '.join(variables)}")
        taken = [key for key in variables or () if key in GIVEN or key in self._tokens.special_tokens]
        if taken:
            raise UserError(f"--template {taken[0]}: cannot be set: it comes from the conversation or the tokenizer")
        if name is None and names and DEFAULT not in names:
            raise UserError(
                f"{self._path}: it has several chat templates and no default: "
                f"choose one with --template ({', '.join(names)}), or use --raw"
            )
        if name is not None and name not in names:
            there = f"it has {', '.join(names)}" if names else "it has none"
            raise UserError(f"{self._path}: has no chat template {name}: {there}")

    def stream(self, shown: Collection[str] = ()) -> TextStream:
        """What turns an answer's tokens into text as they come; special tokens are left out, but for those `shown`."""
        return TextStream(self._backend, shown)

    def text_of(self, token_id: int) -> str:
        """What one token adds to a text, special or not; replacement characters where it is part of a character."""
        once = str(self._backend.decode([token_id], skip_special_tokens=False))
        twice = str(self._backend.decode([token_id, token_id], skip_special_tokens=False))
        return twice[len(once) :]  # a decoder may take the space before a text's first word away

    def _choose(self, name: str | None) -> "ChatTemplate":
        self.check_template(name)
        name = name or DEFAULT
        if name not in self._compiled:
            from coreai_recipes.tokenizer.template import ChatTemplate

            source = self._tokens.chat_templates[name]
            self._compiled[name] = ChatTemplate(source, self._tokens.special_tokens, str(self._path))
        return self._compiled[name]


def check_size(texts: Iterable[str]) -> None:
    """Raise UserError for texts of more than LARGEST_TEXT bytes together."""
    size = sum(len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass")) for text in texts)
    if size > LARGEST_TEXT:
        raise UserError(f"the prompt has {size:,} bytes; at most {LARGEST_TEXT:,} are accepted: shorten it")


def open_tokenizer(folder: Path, tokens: Tokens) -> "Tokenizer":
    """tokenizer.json in `folder` as `tokens` means it, which neither cuts nor pads a text."""
    path = folder / TOKENIZER
    if not path.exists():
        raise BundleError(f"{folder}: {path.name} is missing: build the bundle again")
    try:
        tokenizer = parse_tokenizer(read_text(path), tokens)
    except FileError as error:
        raise BundleError(f"{folder}: {error}") from None
    except TokenizerError as error:
        raise BundleError(f"{path}: not a tokenizer: {error}") from None
    tokenizer.no_truncation()  # settings of the training run, which would cut a prompt
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = tokens.split_special_tokens
    return tokenizer


class TokenizerError(Exception):
    """A text is no tokenizer.json that tokenizers can read."""


def parse_tokenizer(text: str, tokens: Tokens | None = None) -> "Tokenizer":
    """The tokenizer that a tokenizer.json describes. Raises TokenizerError."""
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_str(text)
        if tokens is not None and (tokens.overlay or not _has_added(tokenizer, tokens.added_tokens)):
            tokenizer = Tokenizer.from_str(tokens.laid_over(tokenizer.to_str()))
    except BaseException as error:  # tokenizers raises Exception itself, and for a panic of its own BaseException
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise TokenizerError(_why_no_json(text) or str(error)) from None
        raise
    return tokenizer


def _why_no_json(text: str) -> str | None:
    """What is wrong with a tokenizer.json that is no JSON, where it is small enough to be asked again: tokenizers'
    parser names a place and no reason for what is nested too deeply."""
    if sum(map(text.count, ",[{")) > MOST_EXPLAINED:
        return None
    try:
        load_json(text)
    except ValueError as error:
        return str(error)
    return None


def _has_added(tokenizer: "Tokenizer", added: Sequence[Mapping[str, Any]] | None) -> bool:
    """Whether the tokenizer's added tokens are those."""
    return added is None or list(added) == list_added(tokenizer)


def list_added(tokenizer: "Tokenizer") -> list[dict[str, Any]]:
    """The tokenizer's added tokens as tokenizer.json lists them."""
    flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
    found = sorted(tokenizer.get_added_tokens_decoder().items())
    return [
        {"id": index, "content": token.content, **{flag: getattr(token, flag) for flag in flags}}
        for index, token in found
    ]
