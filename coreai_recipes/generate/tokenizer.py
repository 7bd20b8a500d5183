"""The bundle's tokenizer: text and conversations to token ids, as transformers' tokenizer makes them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coreai_recipes.errors import BundleError
from coreai_recipes.generate.streaming import TextStream

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from coreai_recipes.generate.template import ChatTemplate, Message

TOKENIZER = "tokenizer.json"
CONFIG = "tokenizer_config.json"
SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class BundleTokenizer:
    """tokenizer.json, the chat template and the special tokens that the folder at `path` has.

    Raises BundleError when tokenizer.json is missing or one of the files cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        config = _read_json(path / CONFIG)
        self._special_tokens = {name: text for name in SPECIAL_TOKENS if (text := _token_text(config.get(name)))}
        self._backend = _read_tokenizer(path / TOKENIZER)
        self._source = _find_template(path, config)
        self._template: ChatTemplate | None = None

    @property
    def has_template(self) -> bool:
        return self._source is not None

    def encode(self, text: str) -> list[int]:
        """Plain text, with the special tokens that tokenizer.json adds (a bos, most often).

        tokenizer_config.json's add_bos_token is not read: transformers drops it where there is a tokenizer.json.
        """
        return list(self._backend.encode(text).ids)

    def encode_chat(self, messages: Sequence["Message"]) -> list[int]:
        """A conversation up to where the answer begins; without a chat template, its messages line by line.

        Raises BundleError when the template refuses it.
        """
        if self._source is None:
            return self.encode("\n".join(message["content"] for message in messages))
        if self._template is None:
            from coreai_recipes.generate.template import ChatTemplate

            self._template = ChatTemplate(self._source, self._special_tokens, str(self._path))
        return list(self._backend.encode(self._template.render(messages), add_special_tokens=False).ids)

    def stream(self) -> TextStream:
        """What turns an answer's tokens into text as they come."""
        return TextStream(self._backend)


def _read_tokenizer(path: Path) -> "Tokenizer":
    from tokenizers import Tokenizer

    if not path.is_file():
        raise BundleError(f"{path.parent}: {path.name} is missing: build the bundle again")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the class that tokenizers raises has no name
        raise BundleError(f"{path}: not a tokenizer: {error}") from None
    tokenizer.no_truncation()  # settings of the training run, which would cut a prompt
    tokenizer.no_padding()
    return tokenizer


def _find_template(path: Path, config: dict[str, Any]) -> str | None:
    """chat_template.jinja, else tokenizer_config.json's (the one named default of several), else chat_template.json."""
    if (path / "chat_template.jinja").is_file():
        return _read_text(path / "chat_template.jinja")
    template = config.get("chat_template") or _read_json(path / "chat_template.json").get("chat_template")
    if isinstance(template, list):
        named = {each.get("name"): each.get("template") for each in template if isinstance(each, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None


def _token_text(token: Any) -> str | None:
    """A special token is a string, or a mapping with its `content`."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


def _read_json(path: Path) -> dict[str, Any]:
    """The object in the file; empty where there is no file."""
    if not path.is_file():
        return {}
    try:
        document = json.loads(_read_text(path))
    except ValueError as error:
        raise BundleError(f"{path}: not JSON: {error}") from None
    if not isinstance(document, dict):
        raise BundleError(f"{path}: holds a {type(document).__name__}, not an object")
    return document


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError(f"{path}: cannot be read: {error}") from None
