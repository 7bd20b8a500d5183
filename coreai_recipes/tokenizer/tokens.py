"""tokens.json: what transformers' tokenizer of a checkpoint knows that is not in the checkpoint's tokenizer.json.

Special tokens may stand in special_tokens_map.json or be a class's defaults, added tokens in tokenizer_config.json
alone, templates in files beside it; a class may cut text otherwise than tokenizer.json says. tokens.json holds the
outcome; docs/tokens.md says what a host does with it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from coreai_recipes.errors import BundleError
from coreai_recipes.tokenizer.files import FileError, read_object, read_text

TOKENS = "tokens.json"
TOKENIZER = "tokenizer.json"
FORMAT = 1
DEFAULT = "default"
SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
TEMPLATE_FOLDER = "additional_chat_templates"
# what of a tokenizer.json decides ids and text; its truncation and padding are a training run's
VOCABULARY = ("vocab", "merges")
PARTS = ("normalizer", "pre_tokenizer", "model", "post_processor", "decoder")


@dataclass(frozen=True)
class Tokens:
    """`special_tokens` by name (bos_token ...), which templates use; `chat_templates` by name, most often `default`.

    `added_tokens` are all that are found whole in a text, as tokenizer.json lists them; None where tokenizer.json's own
    are right. `end_tokens` are the ids that end an answer, with their text.
    `overlay` is laid over tokenizer.json: its parts replace those there, the keys of its `model` those of the model.
    """

    special_tokens: Mapping[str, str] = field(default_factory=dict)
    added_tokens: Sequence[Mapping[str, Any]] | None = None
    end_tokens: Mapping[int, str | None] = field(default_factory=dict)
    chat_templates: Mapping[str, str] = field(default_factory=dict)
    overlay: Mapping[str, Any] = field(default_factory=dict)
    split_special_tokens: bool = False

    def to_json(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "special_tokens": dict(self.special_tokens),
            "added_tokens": None if self.added_tokens is None else [dict(token) for token in self.added_tokens],
            "end_tokens": [{"id": index, "content": text} for index, text in self.end_tokens.items()],
            "chat_templates": dict(self.chat_templates),
            "tokenizer": dict(self.overlay),
            "split_special_tokens": self.split_special_tokens,
        }

    def write(self, folder: Path) -> None:
        # in ASCII: a template may hold half of a surrogate pair, which UTF-8 cannot write and JSON can
        (folder / TOKENS).write_text(json.dumps(self.to_json(), indent=2) + "\n", encoding="ascii")

    def laid_over(self, text: str) -> str:
        """The tokenizer.json that tokenizers writes as `text` as it is meant, with overlay and added tokens."""
        document, vocabulary = split_vocabulary(text)
        parts = {key: value for key, value in self.overlay.items() if key != "model"}
        model = {**document.pop("model"), **self.overlay.get("model", {})}
        added = {} if self.added_tokens is None else {"added_tokens": [dict(token) for token in self.added_tokens]}
        if not model.keys().isdisjoint(VOCABULARY):
            model = {**json.loads(f"{{{vocabulary}}}"), **model}
            vocabulary = ""
        head = json.dumps({**document, **parts, **added, "model": model}, ensure_ascii=False)
        return f"{head[:-2]}, {vocabulary}}}}}" if vocabulary else head


def split_vocabulary(text: str) -> tuple[dict[str, Any], str]:
    """What tokenizers writes as tokenizer.json: all but the vocabulary and its merges, and those as they are written.

    They are a hundred times as large as the rest, and the same on either side of nearly every comparison. Within a
    string a quote is written with a backslash before it, so the first such key is the model's.
    """
    start = text.find('"vocab":')
    if start < 0:
        return json.loads(text), ""
    return json.loads(f"{text[:start].rstrip(', ')}}}}}"), text[start:-2]


def differences(meant: str, stated: str) -> dict[str, Any]:
    """The overlay that turns a tokenizer.json that says `stated` into `meant`, both as tokenizers writes them."""
    (ours, our_vocabulary), (theirs, their_vocabulary) = split_vocabulary(meant), split_vocabulary(stated)
    if our_vocabulary != their_vocabulary:
        ours["model"] |= json.loads(f"{{{our_vocabulary}}}")
        theirs["model"] |= json.loads(f"{{{their_vocabulary}}}")
    overlay = {part: ours[part] for part in PARTS if part != "model" and ours.get(part) != theirs.get(part)}
    there = theirs["model"]
    model = {key: value for key, value in ours["model"].items() if key not in there or there[key] != value}
    return {**overlay, **({"model": model} if model else {})}


def read_tokens(folder: Path) -> Tokens:
    """tokens.json in `folder`; of an older bundle, what the checkpoint's own files say.

    Raises BundleError, beginning with the folder, for a file that cannot be read.
    """
    try:
        return _read_ours(folder) if (folder / TOKENS).exists() else read_their_files(folder)
    except FileError as error:
        raise BundleError(f"{folder}: {error}") from None


def read_their_files(folder: Path) -> Tokens:
    """What can be known without transformers: special tokens and templates. Raises FileError."""
    config = read_object(folder / "tokenizer_config.json")
    # transformers reads the older file only where the newer one has no added_tokens_decoder
    older = {} if "added_tokens_decoder" in config else read_object(folder / "special_tokens_map.json")
    named = {name: _token_text({**config, **older}.get(name)) for name in SPECIAL_TOKENS}
    return Tokens(
        special_tokens={name: text for name, text in named.items() if text},
        chat_templates=read_templates(folder, config),
    )


def read_templates(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """Templates by name: those in files of their own, else tokenizer_config.json's, else a processor's."""
    found: dict[str, str] = {}
    if (folder / "chat_template.jinja").exists():
        found[DEFAULT] = read_text(folder / "chat_template.jinja")
    for path in sorted((folder / TEMPLATE_FOLDER).glob("*.jinja")):
        found[path.name.removesuffix(".jinja")] = read_text(path)
    if found:
        return found
    template = config.get("chat_template") or read_object(folder / "chat_template.json").get("chat_template")
    if isinstance(template, list):
        named = {each.get("name"): each.get("template") for each in template if isinstance(each, dict)}
        return {name: text for name, text in named.items() if isinstance(name, str) and isinstance(text, str)}
    return {DEFAULT: template} if isinstance(template, str) else {}


def _read_ours(folder: Path) -> Tokens:
    document = read_object(folder / TOKENS)
    if document.get("format") != FORMAT:
        raise FileError(f"{TOKENS} has format {document.get('format')!r:.40}, this version reads format {FORMAT}")
    special, templates = document.get("special_tokens"), document.get("chat_templates")
    added, ends, overlay = document.get("added_tokens"), document.get("end_tokens"), document.get("tokenizer")
    wrong = [
        key
        for key, right in (
            ("special_tokens", _is_texts(special)),
            ("chat_templates", _is_texts(templates)),
            ("added_tokens", added is None or (isinstance(added, list) and all(isinstance(t, dict) for t in added))),
            ("end_tokens", isinstance(ends, list) and all(_is_end(token) for token in ends)),
            ("tokenizer", _is_overlay(overlay)),
            ("split_special_tokens", isinstance(document.get("split_special_tokens"), bool)),
        )
        if not right
    ]
    if wrong:
        raise FileError(f"{TOKENS}: {', '.join(wrong)}: not what `recipe build` writes; build the bundle again")
    return Tokens(
        special_tokens=special or {},
        added_tokens=added,
        end_tokens={token["id"]: token.get("content") for token in ends or []},
        chat_templates=templates or {},
        overlay=overlay or {},
        split_special_tokens=document["split_special_tokens"],
    )


def _is_texts(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(text, str) for text in value.values())


def _is_end(value: object) -> bool:
    return isinstance(value, dict) and type(value.get("id")) is int and value["id"] >= 0


def _is_overlay(value: object) -> bool:
    if not isinstance(value, dict) or not value.keys() <= set(PARTS):
        return False
    return all(part is None or isinstance(part, dict) for part in value.values()) and value.get("model", {}) is not None


def _token_text(token: Any) -> str | None:
    """A special token is a string, or a mapping with its `content`."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None
