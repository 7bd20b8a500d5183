"""A low-rank adapter as PEFT writes it: adapter_config.json, and A and B of each matrix in one safetensors file."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coreai_recipes.checkpoint.base import hash_file
from coreai_recipes.checkpoint.open import find_path, split_hub_id
from coreai_recipes.checkpoint.safetensors import FLOAT_DTYPES, fill_from, open_unchanged
from coreai_recipes.checkpoint.safetensors_header import HeaderError, HeaderTensor, read_header
from coreai_recipes.checkpoint.settings import read_settings
from coreai_recipes.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."  # PeftModel's, around the model that transformers knows
KEY = re.compile(r"(?P<module>.+)\.lora_(?P<part>A|B|magnitude_vector)(?:\.weight)?")
# of a pattern, which may come from a stranger: a few repeats of one character each end soon on any name
MOST_REPEATS, LONGEST_PATTERN, LONGEST_MODULE = 3, 4000, 200
PARTS = {"A": "a", "B": "b", "magnitude_vector": "magnitude"}

# What else an adapter's config may say, and the values that ask for nothing: with any other, its product is not theirs.
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "bias": ("none",),
    "modules_to_save": (None, []),
    "trainable_token_indices": (None, [], {}),
    "target_parameters": (None, []),
    "layer_replication": (None, []),
    "lora_bias": (False, None),
    "use_qalora": (False, None),
    "use_bdlora": (False, None),
    "alora_invocation_tokens": (None, []),
    "arrow_config": (None,),
    "velora_config": (None,),
    "monteclora_config": (None,),
    "kasa_config": (None,),
    "ensure_weight_tying": (False, None),
}
# how training began, where that left the base as it was; the others take a part of it away, which is not in the file
BEGINNINGS = (True, False, None, "gaussian", "eva", "orthogonal")


@dataclass(frozen=True)
class LowRank:
    """What an adapter adds to one matrix W (out, in): `scale` B A, A (rank, in), B (out, rank). With a `magnitude`
    (out,) the rows of the sum are given that length (DoRA)."""

    module: str
    a: str
    b: str
    rank: int
    scale: float
    shape: tuple[int, int]
    magnitude: str | None = None


class Adapter:
    """The adapter in a folder. `source` is its hub id with its commit or the folder's base name, `base` the checkpoint
    that its config names, `modules` its matrices by the name that transformers has for their modules.

    Raises CheckpointError with everything that is wrong, and for what is no LoRA or more than that.
    """

    def __init__(self, folder: Path, source: str | None = None) -> None:
        self.path = folder
        self.source = source or folder.resolve().name
        if not (folder / CONFIG).is_file():
            raise CheckpointError(f"{self.place}: is no adapter: it has no {CONFIG}")
        self.config = read_settings(folder / CONFIG, self.place)
        self._check_config()
        if not (folder / WEIGHTS).is_file():
            raise CheckpointError(f"{self.place}: has no {WEIGHTS}; a pickle is not read: save it with safetensors")
        try:
            self._file = read_header(folder / WEIGHTS)
        except HeaderError as error:
            raise CheckpointError(f"{self.place}: {WEIGHTS}: {error}") from None
        self.modules = self._find_modules()

    @property
    def place(self) -> str:
        return f"adapter {self.path}"

    @property
    def base(self) -> str | None:
        """The checkpoint that it was trained on, as its config names it."""
        named = self.config.get("base_model_name_or_path")
        return named if isinstance(named, str) and named else None

    def digests(self) -> dict[str, str]:
        """sha256 of each of its files."""
        return {name: hash_file(self.path / name, self.place) for name in (CONFIG, WEIGHTS)}

    def read(self, tensor: str) -> Tensor:
        """A tensor in float32."""
        import torch

        entry: HeaderTensor = self._file.tensors[tensor]
        data = bytearray(entry.stop - entry.start)
        with open_unchanged(self._file, self.place) as file:
            file.seek(self._file.data_start + entry.start)
            fill_from(file, memoryview(data), self._file.path, self.place)
        return torch.frombuffer(data, dtype=getattr(torch, FLOAT_DTYPES[entry.dtype])).view(entry.shape).float()

    def _check_config(self) -> None:
        config, problems = self.config, []
        if config.get("peft_type") != "LORA":
            problems.append(f"peft_type {config.get('peft_type')!r:.40} is no LORA")
        for key, neutral in NEUTRAL.items():
            if key in config and config[key] not in neutral:
                problems.append(f"{key}: {config[key]!r:.60} is not supported: merge it into its base with peft first")
        beginning = config.get("init_lora_weights")
        if not (beginning in BEGINNINGS or str(beginning).startswith("eva")):
            problems.append(
                f"init_lora_weights: {beginning!r:.40} changed its base: save it with "
                "path_initial_model_for_weight_conversion, as peft's documentation says"
            )
        for key in ("rank_pattern", "alpha_pattern"):
            numbers = config.get(key) or {}
            if not isinstance(numbers, dict) or not all(_is_number(each) for each in numbers.values()):
                problems.append(f"{key} is no mapping of names to numbers")
        problems += [f"{key} is no number above 0" for key in ("r", "lora_alpha") if not _is_number(config.get(key))]
        if not isinstance(config.get("target_modules"), str | list):
            problems.append("target_modules is neither a pattern nor a list of names")
        CheckpointError.collect(f"{self.place}: {CONFIG}: {problem}" for problem in problems)

    def _find_modules(self) -> dict[str, LowRank]:
        parts: dict[str, dict[str, str]] = {}
        problems = []
        for name, entry in self._file.tensors.items():
            match = KEY.fullmatch(name.removeprefix(PREFIX))
            if match is None:
                problems.append(f"{name!a:.120} is no matrix of a LoRA")
            elif entry.dtype not in FLOAT_DTYPES:
                problems.append(f"{name} is stored as {entry.dtype}: an adapter is BF16, F16, F32 or F64")
            else:
                parts.setdefault(match["module"], {})[PARTS[match["part"]]] = name
        found = {}
        for module, names in sorted(parts.items()):
            try:
                found[module] = self._low_rank(module, names)
            except ValueError as error:
                problems.append(f"{module}: {error}")
        if not found and not problems:
            problems.append("it has no matrices")
        CheckpointError.collect(f"{self.place}: {problem}" for problem in problems[:20])
        return found

    def _low_rank(self, module: str, names: Mapping[str, str]) -> LowRank:
        """Raises ValueError for what does not hold together, or is not what its config says."""
        if len(module) > LONGEST_MODULE:
            raise ValueError("no module has so long a name")
        if "a" not in names or "b" not in names:
            raise ValueError(f"lora_{'B' if 'a' in names else 'A'} is missing")
        if ("magnitude" in names) != bool(self.config.get("use_dora")):
            raise ValueError("use_dora and the tensors say different things")
        (a, b) = (self._file.tensors[names[part]].shape for part in "ab")
        rank = int(_by_pattern(self.config.get("rank_pattern"), module, self.config["r"]))
        if len(a) != 2 or len(b) != 2 or (a[0], b[1]) != (rank, rank):
            raise ValueError(f"A is {a} and B is {b}, and the rank is {rank}")
        if "magnitude" in names and math.prod(self._file.tensors[names["magnitude"]].shape) != b[0]:
            raise ValueError(f"its magnitudes are not those of {b[0]} rows")
        if not self._is_target(module):
            raise ValueError(f"its config targets no such module: target_modules is {self.config['target_modules']}")
        alpha = _by_pattern(self.config.get("alpha_pattern"), module, self.config["lora_alpha"])
        scale = alpha / (math.sqrt(rank) if self.config.get("use_rslora") else rank)
        return LowRank(module, names["a"], names["b"], rank, scale, (b[0], a[1]), names.get("magnitude"))

    def _is_target(self, module: str) -> bool:
        """As peft decides it: a pattern matches the whole name, a word its end."""
        targets = self.config["target_modules"]
        if isinstance(targets, str):
            return targets == "all-linear" or _compiled(targets, "target_modules").fullmatch(module) is not None
        return any(module == target or module.endswith(f".{target}") for target in targets)


def open_adapter(src: str | Path) -> Adapter:
    """The adapter at `src`: a folder, else a hub id, which is downloaded. Raises CheckpointError."""
    path = find_path(src)
    if os.path.exists(path):
        return Adapter(path)
    repo_id, revision = split_hub_id(src)
    from coreai_recipes.checkpoint.hub import download_files

    folder, commit = download_files(repo_id, revision, None, [CONFIG, WEIGHTS], ignored=[])
    return Adapter(folder, f"{repo_id}@{commit}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1 << 20


def _by_pattern(patterns: Any, module: str, default: float) -> float:
    """The number of the first pattern that the end of a module's name matches (peft, `get_pattern_key`)."""
    for pattern, number in (patterns or {}).items():
        if _compiled(rf"(.*\.)?({pattern})$", "a key of rank_pattern or alpha_pattern").match(module):
            return float(number)
    return default


@cache
def _compiled(pattern: str, place: str) -> re.Pattern[str]:
    """Raises ValueError for what is no pattern, and for one that could be tried without end."""
    repeats = re.findall(r"(?<!\\)[*+{]", pattern)
    if len(pattern) > LONGEST_PATTERN or len(repeats) > MOST_REPEATS + 1 or re.search(r"\)[*+{]", pattern):
        raise ValueError(f"{place} repeats too much for a pattern of names: {pattern:.60}")
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{place} is no pattern: {error}") from None
