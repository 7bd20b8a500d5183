"""What differs per GGUF architecture, read from tables/architectures.yaml: names, layouts and metadata keys."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from coreai_recipes.checkpoint.gguf.metadata import Metadata
from coreai_recipes.errors import CheckpointError

TABLES = Path(__file__).parent / "tables"
LAYER = re.compile(r"blk\.(0|[1-9][0-9]{0,5})\.")


@dataclass(frozen=True)
class Architecture:
    """One row of the table; every word on the right is transformers'.

    Attributes:
        config: what the architecture itself implies, and the values of keys that a file leaves out.
        names: GGUF tensor names to transformers', `{layer}` for the layer's number.
        keys: metadata keys (without their prefix) to config fields.
        checked: keys that config.py and rope.py read themselves.
        harmless: keys that are taken with this one value only.
        ignored: keys without influence, each with the reason.
        interleaved: modules whose rows are interleaved per head, to the config field that counts their heads.
        norm_weight: `1+w` where norms are stored with one added, else `w`.
        flags: config fields that are true when the file has such a tensor.
        rope_tensors: how to read tensors that hold rotary factors: `llama3`, `longrope` or none.
        partial_rotary: whether a rotated width below head_dim can be expressed.
        with_sliding_window: what replaces entries of `config` when the file states a sliding window.
        sliding_period: every how many layers one attends in full; None when the layers do not differ.
        query_scale: where query_pre_attn_scalar comes from.
        yarn: what a yarn scaling of the architecture has beyond what a file can say.
    """

    name: str
    config: dict[str, Any]
    names: dict[str, str]
    keys: dict[str, str]
    checked: frozenset[str]
    harmless: dict[str, Any]
    ignored: dict[str, str]
    interleaved: dict[str, str] = field(default_factory=dict)
    norm_weight: str = "w"
    flags: dict[str, str] = field(default_factory=dict)
    rope_tensors: str | None = None
    partial_rotary: bool = False
    with_sliding_window: dict[str, Any] = field(default_factory=dict)
    sliding_period: int | None = None
    query_scale: dict[str, int] | None = None
    yarn: dict[str, Any] = field(default_factory=dict)

    def transformers_name(self, name: str) -> str | None:
        """transformers' name of the GGUF tensor `name`; None when the table has none."""
        match = LAYER.match(name)
        if match is None:
            return self.names.get(name)
        pattern = self.names.get(f"blk.{{layer}}.{name[match.end() :]}")
        return pattern.format(layer=match[1]) if pattern else None

    def has_shifted_norm(self, name: str) -> bool:
        """Whether the tensor (in transformers' words) is a norm's weight that is stored with one added."""
        return self.norm_weight == "1+w" and name.endswith("norm.weight")

    def heads_field(self, name: str) -> str | None:
        """The config field that counts the heads of a tensor whose rows are interleaved, else None."""
        return next((field for module, field in self.interleaved.items() if f".{module}." in name), None)

    def unknown_keys(self, metadata: Metadata) -> list[str]:
        """One problem for each key under the architecture's prefix that we do not understand."""
        problems = []
        for key in metadata.keys_under(self.name):
            full = f"{self.name}.{key}"
            if key in self.harmless:
                value = metadata.values[full]
                if value != self.harmless[key]:
                    problems.append(f"{metadata.path}: {full} is {value!r}, which is not supported")
            elif key not in self.keys and key not in self.checked and key not in self.ignored:
                problems.append(f"{metadata.path}: {full} is not understood, so the model cannot be rebuilt faithfully")
        return problems


@cache
def architectures() -> Mapping[str, Architecture]:
    """Every architecture of the table by its GGUF name."""
    table = load_table("architectures")
    return {
        name: Architecture(
            name=name,
            names={stored: ours for group in row["names"] for stored, ours in table["names"][group].items()},
            keys={
                key: field
                for key, field in {**table["keys"], **row.get("keys", {})}.items()
                if key not in row.get("ignored", {})
            },
            checked=frozenset(table["checked"]),
            harmless=table["harmless"],
            ignored={**table["ignored"], **row.get("ignored", {})},
            **{key: value for key, value in row.items() if key not in ("names", "keys", "ignored")},
        )
        for name, row in table["architectures"].items()
    }


def load_table(name: str) -> dict[str, Any]:
    """The YAML table `name` that ships with the package."""
    content: dict[str, Any] = yaml.safe_load((TABLES / f"{name}.yaml").read_text(encoding="utf-8"))
    return content


def find_architecture(metadata: Metadata) -> Architecture:
    """The row for `general.architecture`; CheckpointError when the table has none, or the file is no whole model."""
    kind = metadata.text("general.type", "model")
    if kind != "model":
        raise metadata.refuse("general.type", f"is {kind!r}: the file is not a whole model")
    name = metadata.text("general.architecture")
    found = architectures().get(name or "")
    if found is None:
        shown = "is missing" if name is None else f"is {name!r}, which is not supported"
        raise metadata.refuse("general.architecture", f"{shown}; known are {', '.join(sorted(architectures()))}")
    return found


def check_layers(path: Path, names: Iterable[str], count: int) -> None:
    """Raise CheckpointError unless the tensors are those of layers 0 to `count` - 1."""
    layers = {int(match[1]) for name in names if (match := LAYER.match(name))}
    if len(layers) != count or max(layers, default=-1) != count - 1:
        there = f"{min(layers)} to {max(layers)}, {len(layers)} in all" if layers else "none"
        raise CheckpointError(f"{path}: block_count is {count}, but the layers that have tensors are {there}")
