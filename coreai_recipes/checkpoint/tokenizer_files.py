"""A checkpoint folder's tokenizer: which files are its, what is wrong with them, and their way into a bundle."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from coreai_recipes.checkpoint.auto_tokenizer import OWN_CODE, NotLoaded, describe, has_backend
from coreai_recipes.checkpoint.older_vocabularies import MERGES, OLDER, needed_package, read_ids
from coreai_recipes.errors import CheckpointError
from coreai_recipes.tokenizer.bundle_tokenizer import TokenizerError, parse_tokenizer
from coreai_recipes.tokenizer.files import FileError, read_bytes, read_object, read_text
from coreai_recipes.tokenizer.template import TemplateFault, compile_template
from coreai_recipes.tokenizer.tokens import (
    DEFAULT,
    TEMPLATE_FOLDER,
    TOKENIZER,
    Tokens,
    read_templates,
    read_their_files,
)

CONFIG = "tokenizer_config.json"
# how transformers' answer begins when nothing says which of its classes reads a file
UNKNOWN_CLASS = "Couldn't instantiate the backend tokenizer"
JSON_FILES = (
    CONFIG,
    "generation_config.json",
    "chat_template.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
TOKENIZER_FILES = (TOKENIZER, *JSON_FILES, "chat_template.jinja", *OLDER, MERGES)
# An image or a sound takes this token's place before the table is asked: Gemma 3's text models have it beyond the rows.
PLACEHOLDERS = ("image_token", "audio_token", "video_token")


def check_tokenizer(folder: Path, rows: int, place: str) -> None:
    """Refuse a tokenizer that no build could use, before anything is converted and without transformers.

    Raises CheckpointError with every problem: files that are not what they should be, an id beyond the table's `rows`,
    a template that does not compile.
    """
    CheckpointError.collect(f"{place}: {problem}" for problem in _problems(folder, rows, place))


def _problems(folder: Path, rows: int, place: str) -> Iterator[str]:
    objects: dict[str, dict[str, Any]] = {}
    for name in JSON_FILES:
        try:
            objects[name] = read_object(folder / name)
        except FileError as error:
            yield str(error)
    older = [name for name in OLDER if (folder / name).exists()]
    vocabulary: dict[str, int] = {}
    for name in (*older, *(name for name in (MERGES,) if (folder / name).exists())):
        try:
            if name == older[0] and not (folder / TOKENIZER).exists():
                vocabulary = read_ids(folder / name)
            else:
                read_bytes(folder / name)
        except FileError as error:
            yield str(error)
    config = objects.get(CONFIG, {})
    if (folder / TOKENIZER).exists():
        try:
            vocabulary = parse_tokenizer(read_text(folder / TOKENIZER)).get_vocab(with_added_tokens=True)
        except FileError as error:
            yield str(error)
        except TokenizerError as error:
            yield f"{TOKENIZER} is not a tokenizer: {error}"
    elif not older:
        yield f"has no tokenizer: neither {TOKENIZER} nor {' nor '.join(OLDER)}"
    declared = {**_declared_ids(config, objects.get("added_tokens.json", {})), **vocabulary}
    placeholders = {_text_of(config.get(name)) for name in PLACEHOLDERS}
    beyond = {text: index for text, index in declared.items() if index >= rows and text not in placeholders}
    if beyond:
        text, index = max(beyond.items(), key=lambda item: item[1])
        more = f" and {len(beyond) - 1} more" if len(beyond) > 1 else ""
        yield (
            f"its tokenizer has the token {text!r:.60} with id {index}{more}, but the table has {rows} rows: "
            "use the tokenizer that the weights were trained with"
        )
    if not _are_templates(config.get("chat_template")):
        yield f"its chat template is invalid: {CONFIG} has {config['chat_template']!r:.60} there"
    try:
        templates = read_templates(folder, config)
    except FileError as error:
        yield str(error)
        return
    for name, source in templates.items():
        try:
            compile_template(source)
        except TemplateFault as error:
            yield f"its chat template{'' if name == DEFAULT else f' {name}'} is invalid: {error}"


def _are_templates(value: Any) -> bool:
    """Whether transformers' tokenizer takes `value` for templates: none, a text, or texts by name."""
    named = value if isinstance(value, list) else [{"name": "", "template": value}]
    if isinstance(value, dict):
        named = [{"name": name, "template": text} for name, text in value.items()]
    texts = [each.get(key) if isinstance(each, dict) else None for each in named for key in ("name", "template")]
    return value is None or all(isinstance(text, str) for text in texts)


def check_ids(tokens: Tokens, folder: Path, rows: int, place: str) -> None:
    """Raise CheckpointError for ids of a bundle's tokens.json that are beyond the table's `rows`.

    A text that the checkpoint's files do not have is a default of transformers' class: no prompt is made with it.
    """
    objects = [read_object(folder / name) for name in (CONFIG, "special_tokens_map.json", "added_tokens.json")]
    placeholders = {_text_of(objects[0].get(name)) for name in PLACEHOLDERS}
    texts = set(_texts_in(objects)) - placeholders
    added = {token["id"]: token["content"] for token in tokens.added_tokens or () if token["content"] in texts}
    made: dict[int, str] = {}
    if tokens.added_tokens is None and (folder / TOKENIZER).is_file():  # of what transformers made, nobody has looked
        tokenizer = parse_tokenizer(read_text(folder / TOKENIZER))
        vocabulary = {text: index for text, index in tokenizer.get_vocab().items() if text in texts}
        vocabulary |= tokenizer.get_vocab(with_added_tokens=False)
        made = {index: text for text, index in vocabulary.items() if text not in placeholders}
    beyond = {index: text for index, text in {**made, **added, **tokens.end_tokens}.items() if index >= rows}
    CheckpointError.collect(
        f"{place}: {'an end token' if index in tokens.end_tokens else 'the token'} "
        f"{f'{text!r:.60} with' if text else 'with'} id {index}, but the table has {rows} rows: "
        "use the tokenizer and generation_config.json that the weights were trained with"
        for index, text in sorted(beyond.items())[:20]
    )


def _texts_in(value: Any) -> Iterator[str]:
    """Every text of a JSON document, keys included."""
    waiting = [value]
    while waiting:
        found = waiting.pop()
        if isinstance(found, str):
            yield found
        elif isinstance(found, dict):
            waiting += [*found, *found.values()]
        elif isinstance(found, list):
            waiting += found


def _declared_ids(config: dict[str, Any], added: dict[str, Any]) -> dict[str, int]:
    """The ids that the older ways of adding tokens give, by text."""
    decoder = config.get("added_tokens_decoder")
    found = {
        _text_of(token): int(index)
        for index, token in (decoder.items() if isinstance(decoder, dict) else ())
        if index.isdecimal() and len(index) < 12
    }
    found |= {text: index for text, index in added.items() if type(index) is int}
    return {text: index for text, index in found.items() if text is not None}


def _text_of(token: Any) -> str | None:
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


def write_tokenizer(source: Path, folder: Path, place: str, end_ids: list[int], loaded: "Any | NotLoaded") -> None:
    """Copy the checkpoint's files as they are; write tokens.json, and where there is none tokenizer.json.

    `loaded` is transformers' tokenizer of the checkpoint, or why there is none: tokens.json then says what files do.
    Raises CheckpointError, beginning with `place`, when tokenizer.json cannot be had.
    """
    found = [name for name in TOKENIZER_FILES if (source / name).is_file()]
    if TOKENIZER not in found:
        check_made(source, place, loaded)
    for name in found:
        shutil.copyfile(source / name, folder / name)
    for path in sorted((source / TEMPLATE_FOLDER).glob("*.jinja")):
        (folder / TEMPLATE_FOLDER).mkdir(exist_ok=True)
        shutil.copyfile(path, folder / TEMPLATE_FOLDER / path.name)
    stated = read_text(source / TOKENIZER) if TOKENIZER in found else None
    if not isinstance(loaded, NotLoaded):
        if stated is None:
            loaded.backend_tokenizer.save(str(folder / TOKENIZER))
        tokens = describe(loaded, stated, end_ids)
    else:
        vocabulary = parse_tokenizer(stated or "")
        tokens = replace(
            read_their_files(source), end_tokens={index: vocabulary.id_to_token(index) for index in end_ids}
        )
    if not tokens.chat_templates:  # a processor's, which a tokenizer does not read
        tokens = replace(tokens, chat_templates=read_templates(source, {}))
    tokens.write(folder)


def check_made(source: Path, place: str, loaded: "Any | NotLoaded") -> None:
    """Refuse a folder without tokenizer.json from which transformers makes none, by the package that is missing."""
    older = [name for name in OLDER if (source / name).is_file()]
    if not older:
        raise CheckpointError(f"{place}: has no tokenizer: neither {TOKENIZER} nor {' nor '.join(OLDER)}")
    if isinstance(loaded, NotLoaded):
        why = _why_not_made(source, older, loaded.reason)
        raise CheckpointError(f"{place}: has no {TOKENIZER}, and transformers cannot convert it: {why}")
    if not has_backend(loaded):
        name = type(loaded).__name__
        raise CheckpointError(
            f"{place}: has no {TOKENIZER}, and its {name} is written in Python, so it cannot be converted"
        )
    if not loaded.backend_tokenizer.get_vocab_size(with_added_tokens=False) > len(loaded.all_special_tokens):
        raise CheckpointError(
            f"{place}: has no {TOKENIZER}, and transformers' {type(loaded).__name__} reads no vocabulary from "
            f"{' or '.join(older)}: name its tokenizer_class in {CONFIG}"
        )


def _why_not_made(source: Path, older: list[str], reason: str) -> str:
    """Why transformers makes no tokenizer of those files, where its own `reason` is about others."""
    if reason == OWN_CODE:
        return reason
    for name in older:
        if package := needed_package(source / name):
            return f"{name} needs the package {package}: pip install {package}"
    if older == ["vocab.json"] and not (source / MERGES).is_file():
        return f"vocab.json is here and {MERGES}, which most tokenizers also need, is not ({reason})"
    if UNKNOWN_CLASS in reason:
        return f"the type of {older[0]} is unknown: name its tokenizer_class in {CONFIG}"
    return reason
