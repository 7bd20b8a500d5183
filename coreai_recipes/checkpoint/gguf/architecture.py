"""What differs per GGUF architecture, read from tables/: names, layouts and metadata keys."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml

from coreai_recipes.checkpoint.gguf.header import StoredTensor
from coreai_recipes.checkpoint.gguf.layout import AS_IT_IS, Layout
from coreai_recipes.checkpoint.gguf.metadata import Metadata, describe
from coreai_recipes.errors import CheckpointError

MOST_PROBLEMS = 200
# What a row says in other words than an Architecture.
APART = ("also", "names", "own_names", "joined", "layouts", "required", "optional", "checked", "unread", "unrotated")
TABLES = Path(__file__).parent / "tables"
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")  # the field that counts them, by family
LAYER = re.compile(r"blk\.(0|[1-9][0-9]{0,5})\.")


@dataclass(frozen=True)
class Joined:
    """A tensor of transformers' that is put together of stored ones, stacked by expert: `of`, without their layer.

    With `transpose` transformers has (in, out); with `alternate` the rows of the two take turns. With `rows` they are
    matrices: one below the other (`in_turn`), or a share of each for every key head (`by_key_head`), or of every head
    the keys, stored transposed, and the values (`by_head`).
    """

    target: str
    of: tuple[str, ...]
    transpose: bool = False
    alternate: bool = False
    rows: Literal["in_turn", "by_key_head", "by_head"] | None = None


@dataclass(frozen=True)
class Architecture:
    """One row of the table; every word on the right is transformers'.

    Attributes:
        config: what the architecture itself implies, and the values of keys that a file leaves out.
        also: other model_types that are written under this name, and are then its own.
        names: GGUF tensor names to transformers', `{layer}` for the layer's number, `{expert}` or `{stream}` for a
            stacked one's.
        joined: tensors of transformers' that are put together of several.
        layouts: how transformers' names end, to what the converter does to such tensors; the longest ending counts.
        keys: metadata keys (without their prefix) to config fields.
        required: those of `keys` that every file must have.
        checked: keys that config.py, layers.py and rope.py read themselves.
        harmless: keys that are taken with this one value only.
        ignored: keys without influence, each with the reason.
        unread: keys that mean something in other architectures, and of which nothing says what they mean here.
        zero: config fields for which the loader takes 0 as not given, with what they are then.
        quotients: config fields that are one key's value divided by another's.
        row_counts: config fields that are how many rows a tensor has.
        flags: config fields that are true when the file has such a tensor.
        rope_tensors: how to read tensors that hold rotary factors: `llama3`, `longrope`, `proportional` or none.
        rope_per_kind: `always`, or `sliding` if any layer slides, where sliding layers have a rotary of their own.
        sliding_theta: theta of that rotary where the file does not say; None for that of the others.
        yarn: what a yarn scaling of the architecture has beyond what a file can say.
        partial_rotary: whether a rotated width below head_dim can be expressed.
        variants: what replaces entries of `config` where the file states a key that is neither 0 nor false.
        with_sliding_window: what replaces entries of `config` when the file states a sliding window.
        sliding_period: every how many layers one attends in full; None when the layers do not differ.
        without_kv_heads: what transformers calls a layer whose attention.head_count_kv is 0.
        one_mixer: `mlp` or `moe` where a layer is either attention or recurrent or that, else None.
        by_gating: what replaces entries of `config` where expert_gating_func has such a value.
        latent: whether keys and values are made of a narrower stream, whose sizes have keys of their own.
        layer_periods: whether Jamba's periods follow from the layers' KV heads and routers.
        untied: why a file without output.weight cannot be read, else None.
        recurrent_period: every how many layers one attends where the file does not say, and the others are recurrent.
        sizes_per_kind: whether heads, caches and widths differ between layers, as in Gemma 4.
        query_scale: where query_pre_attn_scalar comes from.
        head_scale: the config field that is head_dim ** -0.5 where the file does not say.
    """

    name: str
    config: dict[str, Any]
    names: dict[str, str]
    joined: tuple[Joined, ...]
    layouts: dict[str, Layout]
    keys: dict[str, str]
    required: tuple[str, ...]
    checked: frozenset[str]
    harmless: dict[str, Any]
    ignored: dict[str, str]
    also: tuple[str, ...] = ()
    unread: frozenset[str] = frozenset()
    zero: dict[str, float] = field(default_factory=dict)
    quotients: dict[str, tuple[str, str]] = field(default_factory=dict)
    row_counts: dict[str, str] = field(default_factory=dict)
    flags: dict[str, str] = field(default_factory=dict)
    rope_tensors: str | None = None
    rope_per_kind: str | None = None
    sliding_theta: float | None = None
    yarn: dict[str, Any] = field(default_factory=dict)
    partial_rotary: bool = False
    variants: dict[str, dict[str, Any]] = field(default_factory=dict)
    with_sliding_window: dict[str, Any] = field(default_factory=dict)
    sliding_period: int | None = None
    without_kv_heads: str | None = None
    one_mixer: Literal["mlp", "moe"] | None = None
    by_gating: dict[int, dict[str, Any]] = field(default_factory=dict)
    latent: bool = False
    layer_periods: bool = False
    untied: str | None = None
    recurrent_period: int | None = None
    sizes_per_kind: bool = False
    query_scale: dict[str, int] | None = None
    head_scale: str | None = None

    def transformers_name(self, name: str) -> str | None:
        """transformers' name of the GGUF tensor `name`; None when the table has none."""
        match = LAYER.match(name)
        if match is None:
            return self.names.get(name)
        pattern = self.names.get(f"blk.{{layer}}.{name[match.end() :]}")
        return pattern.replace("{layer}", match[1]) if pattern else None

    def knows(self, name: str) -> bool:
        """Whether the GGUF tensor `name` is one of the architecture's, alone or as a part of another."""
        match = LAYER.match(name)
        joined = match is not None and any(name[match.end() :] in how.of for how in self.joined)
        return joined or self.transformers_name(name) is not None

    def joined_of(self, found: Mapping[str, StoredTensor]) -> Iterator[tuple[str, Joined, list[StoredTensor]]]:
        """transformers' name, how and of what, for each tensor that is put together of others in the file."""
        for how in self.joined:
            starts = {name.removesuffix(part) for name in found for part in how.of if name.endswith(f".{part}")}
            for start in sorted(starts):
                parts = [found[start + part] for part in how.of if start + part in found]
                if len(parts) < len(how.of):
                    missing = next(start + part for part in how.of if start + part not in found)
                    raise CheckpointError(f"{parts[0].path}: has {parts[0].name}, but no {missing}")
                yield how.target.replace("{layer}", start.removeprefix("blk.").removesuffix(".")), how, parts

    def layout_of(self, name: str) -> Layout:
        """What the converter does to the tensor of that name (transformers')."""
        endings = [ending for ending in self.layouts if name.endswith(ending)]
        return self.layouts[max(endings, key=len)] if endings else AS_IT_IS

    def unknown_keys(self, metadata: Metadata) -> list[str]:
        """One problem for each key under the architecture's prefix that we do not understand."""
        problems = []
        for key in metadata.keys_under(self.name):
            full = f"{self.name}.{key}"
            if key in self.keys or key in self.checked or key in self.ignored:
                continue
            if key in self.harmless:
                value = metadata.values[full]
                if value != self.harmless[key]:
                    problems.append(f"{metadata.path}: {full} is {describe(value)}, which is not supported")
            elif key in self.unread:
                if value := metadata.values[full]:
                    reason = "llama.cpp does not read it in this architecture, so its meaning is unknown"
                    problems.append(f"{metadata.path}: {full} is {describe(value)}: {reason}")
            else:
                problems.append(f"{metadata.path}: {full} is unknown, so the model cannot be rebuilt faithfully")
        more = len(problems) - MOST_PROBLEMS
        return [*problems[:MOST_PROBLEMS], *([f"{metadata.path}: and {more} more keys like these"] if more > 0 else [])]


@cache
def architectures() -> Mapping[str, Architecture]:
    """Every architecture of the table by its GGUF name."""
    shared = load_table("shared")
    names = sorted(path.stem for path in (TABLES / "architectures").glob("*.yaml"))
    return {name: _read_row(name, load_table(f"architectures/{name}"), shared) for name in names}


def _read_row(name: str, row: dict[str, Any], shared: dict[str, Any]) -> Architecture:
    """A row with what all rows share; what a row says of a key is all that is said of it."""
    parts = ("keys", "harmless", "ignored")
    turning = shared["unrotated"].items() if row.get("unrotated") else ()
    unread = {key: reason for key, reason in turning if key not in (*row.get("harmless", ()), *row.get("keys", ()))}
    row = {**row, "ignored": {**unread, **row.get("ignored", {})}}
    own = {key for part in (*parts, "unread") for key in row.get(part, {})}
    itself = {*row.get("checked", ())}
    lists: dict[str, dict[str, Any]] = {
        part: {**{key: value for key, value in shared[part].items() if key not in own | itself}, **row.get(part, {})}
        for part in parts
    }
    required = {*shared["required"], *row.get("required", ())} - {*row.get("optional", ())}
    layouts = {ending: how for group in row.get("layouts", ()) for ending, how in shared["layouts"][group].items()}
    return Architecture(
        name=name,
        also=tuple(row.get("also", ())),
        names={
            **{stored: ours for group in row["names"] for stored, ours in shared["names"][group].items()},
            **row.get("own_names", {}),
        },
        joined=tuple(Joined(**{**entry, "of": tuple(entry["of"])}) for entry in row.get("joined", ())),
        layouts={ending: Layout(**how) for ending, how in layouts.items()},
        required=tuple(key for key in lists["keys"] if key in required),
        checked=frozenset({*shared["checked"], *row.get("checked", ())} - own),
        unread=frozenset(row.get("unread", ())),
        keys=lists["keys"],
        harmless=lists["harmless"],
        ignored=lists["ignored"],
        **{key: value for key, value in row.items() if key not in (*parts, *APART)},
    )


def load_table(name: str) -> dict[str, Any]:
    """The YAML table `name` that ships with the package."""
    content: dict[str, Any] = yaml.safe_load((TABLES / f"{name}.yaml").read_text(encoding="utf-8"))
    return content


def find_architecture(metadata: Metadata) -> Architecture:
    """The row for `general.architecture`; CheckpointError when the table has none, or the file is no whole model."""
    kind = metadata.text("general.type", "model")
    if kind != "model":
        raise metadata.refuse("general.type", f"is {kind!r}: the file does not hold a whole model")
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
