"""Checkpoints on the hub: a snapshot in huggingface_hub's own cache, or the headers alone.

Everything that can go wrong there is one sentence. HF_ENDPOINT, HF_HUB_OFFLINE, HF_TOKEN and HF_HOME are
huggingface_hub's to honour, and its progress bars show on a terminal only.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from coreai_recipes.checkpoint.base import TensorInfo, Unread
from coreai_recipes.checkpoint.older_vocabularies import MERGES, OLDER
from coreai_recipes.checkpoint.packing import describe_packing, find_foreign, unpack
from coreai_recipes.checkpoint.safetensors import PICKLE_REASON, PICKLE_SUFFIXES, read_index, why_no_shard
from coreai_recipes.checkpoint.safetensors_header import HeaderError, HeaderTensor, check_length, parse_header
from coreai_recipes.checkpoint.settings import read_eos_token_ids, read_settings
from coreai_recipes.errors import CheckpointError, describe
from coreai_recipes.terminal.streams import drawing, escape
from coreai_recipes.tokenizer.tokens import TEMPLATE_FOLDER

SETTINGS_PATTERNS = ["config.json", "generation_config.json", "model.safetensors.index.json"]
SNAPSHOT_PATTERNS = [
    "*.safetensors",
    "*.json",
    "*.jinja",
    MERGES,
    *(name for name in OLDER if not name.endswith(".json")),
]
# In folders lie other formats (original/, onnx/), but for one of templates. A pattern cannot say "all but that one":
# there are two for each of its letters, for names that differ there and for names that end before it. Consolidated and
# adapter files are copies or parts of the weights.
OTHER_FOLDERS = [
    pattern
    for index, letter in enumerate(TEMPLATE_FOLDER)
    for pattern in (f"{TEMPLATE_FOLDER[:index]}[!{letter}]*/*", f"{TEMPLATE_FOLDER[:index]}/*")
]
INSIDE = [f"{TEMPLATE_FOLDER}[!/]*/*", f"{TEMPLATE_FOLDER}/*/*"]
IGNORED_PATTERNS = [*OTHER_FOLDERS, *INSIDE, "consolidated*", "adapter*"]
HEADER_GUESS_BYTES = 128 << 10  # nearly every header is shorter, so that one request is enough
HEADERS_AT_ONCE = 8
MAX_SHARDS = 10_000
COMMIT = re.compile("[0-9a-f]{40}")


def fetch_snapshot(repo_id: str, revision: str | None = None, token: str | None = None) -> tuple[Path, str]:
    """Download what a build needs, or find it in the cache: the folder and the commit that it holds.

    Raises CheckpointError when the repository is gated, missing, offline and not cached, cached in part, or holds no
    safetensors.
    """
    folder, commit = download_files(repo_id, revision, token, SNAPSHOT_PATTERNS)
    if not any(path.suffix == ".safetensors" for path in folder.iterdir()):
        refuse_other_formats(repo_id, commit, token)
    return folder, commit


class HubHeaders(Unread):
    """What `validate` needs of a checkpoint on the hub: names, shapes and config, without downloading a weight."""

    held = "only its headers were downloaded"

    def __init__(self, repo_id: str, revision: str | None = None, token: str | None = None) -> None:
        """Read config.json and the header of every shard. Raises CheckpointError as `fetch_snapshot` does."""
        self.path, commit = download_files(repo_id, revision, token, SETTINGS_PATTERNS)
        self.source = f"{repo_id}@{commit}"
        if not (self.path / "config.json").is_file():
            raise CheckpointError(f"{self.place}: has no config.json, so transformers cannot read it")
        self.config = read_settings(self.path / "config.json", self.place)
        index = self.path / "model.safetensors.index.json"
        files = sorted(set(read_index(index, self.place).values())) if index.is_file() else ["model.safetensors"]
        CheckpointError.collect(f"{self.place}: {why}" for file in files if (why := why_no_shard(file)))
        if len(files) > MAX_SHARDS:
            raise CheckpointError(f"{self.place}: its index names {len(files)} files, more than any model has")
        with ThreadPoolExecutor(HEADERS_AT_ONCE) as pool:
            headers = list(pool.map(lambda file: fetch_header(repo_id, commit, file, token), files))
        problems = [f"{self.place}: {error}" for error in headers if isinstance(error, HeaderError)]
        CheckpointError.collect(problems)
        stored = {
            name: TensorInfo(name, entry.shape, entry.dtype, file)
            for file, header in zip(files, headers, strict=True)
            if not isinstance(header, HeaderError)
            for name, entry in header.items()
        }
        self.tensors, self._packed = unpack(stored, self.config)
        CheckpointError.collect(f"{self.place}: {why}" for why in (find_foreign(self.tensors),) if why)

    @property
    def packing(self) -> str | None:
        return describe_packing(self._packed)

    @property
    def place(self) -> str:
        return f"checkpoint {self.source}"

    def eos_token_ids(self) -> list[int]:
        return read_eos_token_ids(self.path, self.config, self.place)


def download_files(
    repo_id: str,
    revision: str | None,
    token: str | None,
    patterns: list[str],
    ignored: Sequence[str] = IGNORED_PATTERNS,
) -> tuple[Path, str]:
    """The snapshot folder that holds the repository's files that match `patterns` and none of `ignored`, and its
    commit."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]

    class TerminalBar(tqdm):
        """huggingface_hub's bar, whose count of files would show without a terminal too; it names files of the hub."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            if not sys.stderr.isatty():
                kwargs["disable"] = True
            kwargs["desc"] = escape(kwargs.get("desc") or "")
            super().__init__(*args, **(kwargs | {"file": drawing(sys.stderr)}))  # type: ignore[no-untyped-call]

        def set_description(self, desc: str | None = None, refresh: bool = True) -> None:
            super().set_description(escape(desc or ""), refresh)

    with hub_errors_as_sentences(repo_id, revision):
        folder = snapshot_download(
            repo_id,
            revision=revision,
            token=token,
            allow_patterns=patterns,
            ignore_patterns=list(ignored),
            tqdm_class=TerminalBar,
        )
    commit = Path(folder).name
    if COMMIT.fullmatch(commit) is None:
        raise CheckpointError(f"hub id {repo_id}: {not_a_hub(f'its commit is {commit!a:.60}')}")
    return Path(folder), commit


def fetch_header(repo_id: str, commit: str, file: str, token: str | None) -> dict[str, HeaderTensor] | HeaderError:
    """The header of one weight file, by two requests for ranges at most, or what is wrong with it."""
    start, size = fetch_range(repo_id, commit, file, token, HEADER_GUESS_BYTES)
    try:
        length = check_length(start[:8], size)
        if 8 + length > len(start):
            start, size = fetch_range(repo_id, commit, file, token, 8 + length)
        return parse_header(start[8 : 8 + length], size - 8 - length)
    except HeaderError as error:
        return HeaderError(f"{file}: {error}")


def fetch_range(repo_id: str, commit: str, file: str, token: str | None, count: int) -> tuple[bytes, int]:
    """The first `count` bytes of a file on the hub, and its size. A server that does not know ranges sends no more."""
    from huggingface_hub import get_session, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status  # type: ignore[attr-defined]

    headers = build_hf_headers(token=token) | {"Range": f"bytes=0-{count - 1}"}
    url = hf_hub_url(repo_id, file, revision=commit)
    content = bytearray()
    with hub_errors_as_sentences(repo_id, commit):
        try:
            with get_session().stream("GET", url, headers=headers, timeout=30) as response:
                hf_raise_for_status(response)
                for block in response.iter_bytes():
                    content += block
                    if len(content) >= count:
                        break
        except EntryNotFoundError:
            refuse_other_formats(repo_id, commit, token)
    if "Content-Encoding" in response.headers:
        return bytes(content[:count]), len(content)
    ranged = response.headers.get("Content-Range", "").rpartition("/")[2]
    whole = ranged if ranged.isdecimal() else response.headers.get("Content-Length", "")
    return bytes(content[:count]), int(whole) if whole.isdecimal() and len(whole) < 20 else len(content)


def refuse_other_formats(repo_id: str, commit: str, token: str | None) -> NoReturn:
    """CheckpointError that says what a repository without the expected safetensors does hold."""
    from huggingface_hub import HfApi

    with hub_errors_as_sentences(repo_id, commit):
        names = HfApi(token=token).list_repo_files(repo_id, revision=commit)
    place = f"checkpoint {repo_id}@{commit}"
    complete = sorted(name for name in names if name.endswith(".safetensors"))
    if complete:
        raise CheckpointError(
            f"{place}: holds {', '.join(complete[:3])}, but neither model.safetensors nor every shard of an index"
        )
    quantized = sorted(name for name in names if name.endswith(".gguf"))
    if quantized:
        raise CheckpointError(
            f"{place}: holds GGUF files and no safetensors; download one (hf download {repo_id} {quantized[0]}) "
            "and give its path"
        )
    pickles = sorted(name for name in names if name.endswith(PICKLE_SUFFIXES))
    if pickles:
        raise CheckpointError(f"{place}: holds only pickles ({', '.join(pickles[:3])}), all refused: {PICKLE_REASON}")
    raise CheckpointError(f"{place}: holds no weights: neither a .safetensors nor a .gguf file")


@contextmanager
def hub_errors_as_sentences(repo_id: str, revision: str | None) -> Iterator[None]:
    """Turn whatever huggingface_hub raises for a user's or a network's fault into one CheckpointError."""
    from huggingface_hub import errors

    try:
        yield
    except CheckpointError:
        raise
    except errors.HFValidationError as error:
        raise CheckpointError(f"hub id {repo_id}: is not well formed: {error}") from error
    except Exception as error:
        raise CheckpointError(f"hub id {repo_id}: {explain_hub_error(error, repo_id, revision)}") from error


def explain_hub_error(error: Exception, repo_id: str, revision: str | None) -> str:
    """What went wrong in a call of huggingface_hub, and what to do about it."""
    from huggingface_hub import constants, errors

    at = f" at revision {revision}" if revision else ""
    page = f"{constants.ENDPOINT}/{repo_id}"
    # IncompleteSnapshotError is younger than the oldest huggingface_hub that we take.
    incomplete = getattr(errors, "IncompleteSnapshotError", ())
    if isinstance(error, errors.GatedRepoError):
        return f"is gated: ask for access at {page}, then run `hf auth login` or set HF_TOKEN"
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"there is no folder of that name here, and {constants.ENDPOINT} has no such model, or it is private: "
            "check the name, or run `hf auth login` or set HF_TOKEN"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return f"has no revision {revision or 'main'}: its branches and tags are at {page}/tree/main"
    if isinstance(error, incomplete):
        return (
            f"is cached only in part{at} ({describe_missing(repo_id, revision)}), and "
            f"{describe_connection(error)}: run this once online"
        )
    if isinstance(error, errors.LocalEntryNotFoundError):
        return (
            f"is not in the cache{at} ({constants.HF_HUB_CACHE}), and {describe_connection(error)}: "
            "run this once online, or give a folder (there is none of that name here)"
        )
    if isinstance(error, errors.HfHubHTTPError | errors.OfflineModeIsEnabled) or is_network_error(error):
        return f"cannot be downloaded{at}: {describe_connection(error)}"
    if isinstance(error, OSError) and error.errno is not None:
        return f"cannot be written to the cache ({constants.HF_HUB_CACHE}): {error.strerror or error}"
    return not_a_hub(describe(error, 120))


def not_a_hub(found: str) -> str:
    """What to say of an answer that huggingface_hub cannot read: it checks the status, and no more."""
    from huggingface_hub import constants

    return (
        f"{constants.ENDPOINT} did not answer like a hub ({found}): check HF_ENDPOINT, or whether a network's "
        "login page is in between"
    )


def describe_connection(error: BaseException) -> str:
    """Why the hub did not answer: offline by choice, refused by the server, or out of reach."""
    from huggingface_hub import constants, errors

    cause = error
    while isinstance(cause, errors.LocalEntryNotFoundError) and cause.__cause__ is not None:
        cause = cause.__cause__
    if constants.HF_HUB_OFFLINE or isinstance(cause, errors.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set"
    if isinstance(cause, errors.HfHubHTTPError):
        return f"{constants.ENDPOINT} answered {cause.response.status_code} {cause.response.reason_phrase}"
    return f"{constants.ENDPOINT} cannot be reached ({type(cause).__name__})"


def describe_missing(repo_id: str, revision: str | None) -> str:
    """The files that a cached snapshot lacks, as its cached listing has them."""
    from fnmatch import fnmatchcase

    from huggingface_hub import get_cached_repo_tree, try_to_load_from_cache

    names = [
        file.path
        for file in get_cached_repo_tree(repo_id, revision=revision)
        if any(fnmatchcase(file.path, pattern) for pattern in SNAPSHOT_PATTERNS)
        and not any(fnmatchcase(file.path, pattern) for pattern in IGNORED_PATTERNS)
        and not isinstance(try_to_load_from_cache(repo_id, file.path, revision=revision), str)
    ]
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(sorted(names)[:3])}{more} {'is' if len(names) == 1 else 'are'} missing"


def is_network_error(error: Exception) -> bool:
    """Whether the HTTP client gave up; huggingface_hub has changed clients, so it is known by its package."""
    return type(error).__module__.partition(".")[0] in ("httpx", "httpx2", "httpcore", "httpcore2", "requests")
