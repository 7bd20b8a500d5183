"""A session's states in a file, to go on from where an earlier process was: `--prompt-cache`.

A line that says what it is, a line of JSON (the bundle's digest, its adapter, the tokens, how far was written, each
state's shape and type), the states' bytes in that order, and the sha256 of all before it. The file says no size.
"""

import hashlib
import json
import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coreai_recipes.bundle.opened import identity_of
from coreai_recipes.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from coreai_recipes.generate.language_model import LanguageModel

MAGIC = b"recipe prompt cache 1\n"
MAX_HEADER = 16 << 20
DIGEST = 32


class PromptCache:
    """The file at `path` for a model's session. Raises UserError where the runtime does not show its states."""

    def __init__(self, path: Path, model: "LanguageModel") -> None:
        self._path, self._session = path, model.session
        states = model.session.states
        if not isinstance(states, dict):
            raise UserError(f"--prompt-cache {path}: Core ML cannot export its states: use --runtime evaluator")
        self._states: dict[str, Tensor] = states
        self._bundle, self._adapter = identity_of(model.path), model.adapter
        self._vocab_size = model.vocab_size

    def restore(self) -> None:
        """The session as the file has it; as it is where there is no file. Raises UserError for a file of another
        bundle, and one that is no such file."""
        import torch

        if self._path.exists() and not self._path.is_file():
            raise UserError(f"{self._path}: is not a file; use another name")
        size = sum(state.numel() * state.element_size() for state in self._states.values())
        try:
            with self._path.open("rb") as file:
                content = file.read(len(MAGIC) + MAX_HEADER + size + DIGEST + 1)
        except FileNotFoundError:
            return
        except OSError as error:
            raise UserError(f"{self._path}: cannot be read: {(error.strerror or str(error)).lower()}") from None
        if not content.startswith(MAGIC):
            raise UserError(f"{self._path}: is not a prompt cache; use another name")
        head, newline, rest = content[len(MAGIC) :].partition(b"\n")
        header = self._read_header(head) if newline else None
        if header is not None and header["bundle"] != self._bundle:
            raise UserError(f"{self._path}: belongs to another bundle; use another name, or remove it")
        if header is not None and header.get("adapter") != self._adapter:
            # what was read under one adapter is not what another makes of the same text
            was = f"with --adapter {header['adapter']}" if header.get("adapter") else "without --adapter"
            raise UserError(f"{self._path}: was kept {was}; use another name, or remove it")
        if header is None or len(rest) != size + DIGEST or hashlib.sha256(content[:-DIGEST]).digest() != rest[-DIGEST:]:
            raise UserError(f"{self._path}: is damaged; remove it")
        at = 0
        for state in self._states.values():
            length = state.numel() * state.element_size()
            values = torch.frombuffer(bytearray(rest[at : at + length]), dtype=state.dtype)
            state.copy_(values.view(state.shape))
            at += length
        self._session.resume(header["tokens"], header["written"])

    def _read_header(self, head: bytes) -> dict[str, Any] | None:
        """What the file says of itself, None where that cannot be."""
        try:
            header = json.loads(head)
            tokens, written, bundle = header["tokens"], header["written"], header["bundle"]
        except (ValueError, KeyError, TypeError, RecursionError):
            return None
        numbers = [*tokens, written] if isinstance(tokens, list) else [None]
        if not all(type(each) is int and each >= 0 for each in numbers) or not isinstance(bundle, str):
            return None
        fits = len(tokens) <= written <= self._session.context and all(each < self._vocab_size for each in tokens)
        described = {name: [list(state.shape), str(state.dtype)] for name, state in self._states.items()}
        if bundle == self._bundle and not (fits and header.get("states") == described):
            return None
        return dict(header)

    def save(self) -> None:
        """Write what the session holds, in place of what was there: whole, or not at all."""
        header = {
            "bundle": self._bundle,
            **({"adapter": self._adapter} if self._adapter else {}),
            "tokens": list(self._session.token_ids),
            "written": self._session.written,
            "states": {name: [list(state.shape), str(state.dtype)] for name, state in self._states.items()},
        }
        digest = hashlib.sha256()
        try:
            handle, unfinished = tempfile.mkstemp(".unfinished", f"{self._path.name}-", self._path.parent)
            try:
                with os.fdopen(handle, "wb") as file:
                    states = self._session.states
                    parts = (states[name].contiguous().numpy().tobytes() for name in self._states)
                    for part in (MAGIC, json.dumps(header).encode() + b"\n", *parts):
                        digest.update(part)
                        file.write(part)
                    file.write(digest.digest())
                os.replace(unfinished, self._path)
            except BaseException:
                with suppress(OSError):
                    os.unlink(unfinished)
                raise
        except OSError as error:
            raise UserError(f"{self._path}: cannot be written: {(error.strerror or str(error)).lower()}") from None
