"""What transformers makes of a checkpoint's tokenizer files: the authority for token ids, asked at each build."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coreai_recipes.tokenizer.bundle_tokenizer import list_added, parse_tokenizer
from coreai_recipes.tokenizer.tokens import DEFAULT, Tokens, differences

OWN_CODE = "it needs the checkpoint's own code, which is never run"


@dataclass(frozen=True)
class NotLoaded:
    """Why transformers has no tokenizer of a checkpoint."""

    reason: str


def load_tokenizer(folder: str | Path, repo_id: str | None = None, **where: Any) -> "Any | NotLoaded":
    """AutoTokenizer's tokenizer, without the checkpoint's own code; `where` names a file in `folder`.

    `repo_id` is where the folder came from: transformers knows some repositories whose files say the wrong class.
    """
    with quiet_transformers():
        from transformers import AutoTokenizer

        try:
            if repo_id is not None:
                where = {**where, "config": _read_config(folder, repo_id)}
            # Mistral's own format needs a package that may or may not be here, so its use is no question of ids
            found = AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False, mistral_format=False, **where
            )
        except BaseException as error:  # whatever json, a converter or tokenizers raise
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            return NotLoaded(_reason(error).replace(str(folder), "the checkpoint"))
    return found


def _read_config(folder: str | Path, repo_id: str) -> Any:
    """The config as AutoTokenizer reads it, under its repository's name."""
    from transformers import AutoConfig, PreTrainedConfig

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (ValueError, OSError):
        config = PreTrainedConfig.from_pretrained(folder, local_files_only=True)
    config._name_or_path = repo_id
    return config


def has_backend(tokenizer: Any) -> bool:
    """Whether a tokenizer.json describes it: some classes of transformers are written in Python alone."""
    return getattr(tokenizer, "backend_tokenizer", None) is not None


def describe(tokenizer: Any, stated: str | None, end_ids: list[int]) -> Tokens:
    """tokens.json of transformers' `tokenizer`, where tokenizer.json says `stated` (None: what transformers makes).

    `end_ids` are those that the checkpoint's configs name; where there are none, it is the tokenizer's end token.
    """
    overlay, added = {}, None
    if stated is not None and has_backend(tokenizer):
        backend = tokenizer.backend_tokenizer
        overlay = differences(backend.to_str(), parse_tokenizer(stated).to_str())
        added = list_added(backend)
    ends = end_ids or [index for index in (tokenizer.eos_token_id,) if index is not None]
    templates = tokenizer.chat_template or {}
    return Tokens(
        special_tokens=dict(tokenizer.special_tokens_map),
        added_tokens=added,
        end_tokens={index: tokenizer.convert_ids_to_tokens(index) for index in ends},
        chat_templates={DEFAULT: templates} if isinstance(templates, str) else dict(templates),
        overlay=overlay,
        split_special_tokens=bool(tokenizer.split_special_tokens),
    )


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without its warnings, which are about flags of its own that a user of ours never set."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _reason(error: BaseException) -> str:
    """The error in one line."""
    if "trust_remote_code" in str(error):
        return OWN_CODE
    words = " ".join(f"{type(error).__name__}: {error}".split())
    return words if len(words) <= 300 else f"{words[:297]}..."
