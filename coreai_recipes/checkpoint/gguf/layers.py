"""What differs from layer to layer: which slide, attend or are recurrent, and in Gemma 4 heads, caches and widths."""

from collections.abc import Collection
from typing import Any

from coreai_recipes.checkpoint.gguf.architecture import LAYER, Architecture
from coreai_recipes.checkpoint.gguf.header import StoredTensor
from coreai_recipes.checkpoint.gguf.metadata import Metadata

PATTERN = "attention.sliding_window_pattern"
SHARED = "attention.shared_kv_layers"
KV_HEADS = "attention.head_count_kv"
WIDTHS = "feed_forward_length"
INTERVAL = "full_attention_interval"
DRAFTS = "nextn_predict_layers"
MOST_DRAFTS = 64  # released models have three at most


def complete_sliding(architecture: Architecture, metadata: Metadata, config: dict[str, Any]) -> None:
    """layer_types where layers differ; and no window, rather than one of 0, where none slides."""
    key = f"{architecture.name}.{PATTERN}"
    if config.get("sliding_window"):
        config.update(architecture.with_sliding_window)
    elif "sliding_window" in architecture.config:
        config["sliding_window"] = None
    else:
        config.pop("sliding_window", None)  # 0 says that there is none, and the family may not know the field
    if architecture.sliding_period and (config.get("sliding_window") or not architecture.with_sliding_window):
        slide = _slide(metadata, key, config["num_hidden_layers"], architecture.sliding_period)
        config["layer_types"] = [
            "sliding_attention" if config.get("sliding_window") and slides else "full_attention" for slides in slide
        ]


def complete_mixers(
    architecture: Architecture, metadata: Metadata, config: dict[str, Any], tensors: Collection[str]
) -> None:
    """layer_types (layers_block_type in Nemotron-H), of which layers attend, where not all do."""
    if architecture.without_kv_heads:
        heads = _kv_heads(architecture, metadata, config)
        config["layer_types"] = ["full_attention" if count else architecture.without_kv_heads for count in heads]
    if architecture.recurrent_period:
        keys, values = config["linear_num_key_heads"], config["linear_num_value_heads"]
        if values % keys:
            problem = f"is {values}, of which {keys} key heads (ssm.group_count) have no equal share"
            raise metadata.refuse(f"{architecture.name}.ssm.time_step_rank", problem)
        period = metadata.integer(f"{architecture.name}.{INTERVAL}", architecture.recurrent_period)
        if not period:
            raise metadata.refuse(f"{architecture.name}.{INTERVAL}", "is 0")
        config["layer_types"] = [
            "linear_attention" if (layer + 1) % period else "full_attention"
            for layer in range(config["num_hidden_layers"])
        ]
    if architecture.layer_periods:
        heads = _kv_heads(architecture, metadata, config)
        routed = [f"blk.{layer}.ffn_gate_inp.weight" in tensors for layer in range(len(heads))]
        for kind, places in (("attn", heads), ("expert", routed)):
            config.update(_period(metadata, architecture, kind, [bool(place) for place in places]))
    if architecture.one_mixer:
        key = f"{architecture.name}.{WIDTHS}"
        heads = _kv_heads(architecture, metadata, config)
        widths = _of_each_layer(architecture, metadata, config, WIDTHS)
        if any(count and width for count, width in zip(heads, widths, strict=True)):
            raise metadata.refuse(key, "is not 0 in a layer that attends")
        if len({width for width in widths if width}) > 1:
            raise metadata.refuse(key, "differs between layers that have an MLP")
        if architecture.one_mixer == "mlp" and any(widths):
            config["intermediate_size"] = max(widths)
        config["layers_block_type"] = [
            "full_attention" if count else architecture.one_mixer if width else "linear_attention"
            for count, width in zip(heads, widths, strict=True)
        ]


def _period(metadata: Metadata, architecture: Architecture, kind: str, places: list[bool]) -> dict[str, int]:
    """Every how many layers, and from which on, one is such a layer: Jamba's words."""
    found = [layer for layer, place in enumerate(places) if place]
    period = found[1] - found[0] if len(found) > 1 else len(places) + 1
    offset = found[0] if found else len(places)
    if [layer for layer in range(len(places)) if layer % period == offset] != found:
        problem = f"and the layers {found} ({kind}) are at no equal distances, which transformers has no words for"
        raise metadata.refuse(f"{architecture.name}.block_count", f"is {len(places)}, {problem}")
    return {f"{kind}_layer_period": period, f"{kind}_layer_offset": offset}


def _kv_heads(architecture: Architecture, metadata: Metadata, config: dict[str, Any]) -> list[int]:
    """The KV heads of each layer, 0 of one that does not attend (conversion/lfm2.py, granite.py)."""
    key = f"{architecture.name}.{KV_HEADS}"
    heads = _of_each_layer(architecture, metadata, config, KV_HEADS, config["num_attention_heads"])
    counts = {count for count in heads if count}
    if len(counts) > 1:
        raise metadata.refuse(key, "differs between layers that attend")
    config["num_key_value_heads"] = next(iter(counts), config["num_attention_heads"])
    return heads


def _of_each_layer(
    architecture: Architecture, metadata: Metadata, config: dict[str, Any], key: str, default: int | None = None
) -> list[int]:
    """A size, or 0, of each layer; the file's list may go on with those of layers that draft."""
    layers = config["num_hidden_layers"]
    drafts = draft_layers(architecture, metadata)
    return metadata.per_layer(f"{architecture.name}.{key}", layers + drafts, default, least=0)[:layers]


def _slide(metadata: Metadata, key: str, layers: int, period: int) -> list[bool]:
    """Which layers slide: as the file lists them, or all but every `period`-th (llama.cpp, set_swa_pattern)."""
    stated = metadata.values.get(key, period)
    if isinstance(stated, list):
        if len(stated) != layers or any(value not in (0, 1) for value in stated):
            raise metadata.refuse(key, f"is not a list of {layers} booleans")
        return [bool(value) for value in stated]
    period = metadata.integer(key, period) or 0
    return [not period or (layer + 1) % period != 0 for layer in range(layers)]


def complete_kinds(
    architecture: Architecture, metadata: Metadata, config: dict[str, Any], tensors: Collection[str]
) -> None:
    """Gemma 4: what full layers have of their own, who shares a cache, and how wide the MLPs are.

    The converter writes one value for each layer (conversion/gemma.py, Gemma4Model); transformers has words for those
    that Gemma 4 needs, and the others are refused.
    """
    prefix, layers = architecture.name, config["num_hidden_layers"]
    is_full = [kind == "full_attention" for kind in config["layer_types"]]
    if not is_full[-1]:
        raise metadata.refuse(f"{prefix}.{PATTERN}", "makes the last layer slide, which transformers does not support")
    shared = metadata.integer(f"{prefix}.{SHARED}", 0) or 0
    if shared >= layers:
        raise metadata.refuse(f"{prefix}.{SHARED}", f"is {shared}, but there are {layers} layers")
    own = range(layers - shared)
    config["num_kv_shared_layers"] = shared

    widths = metadata.per_layer(f"{prefix}.feed_forward_length", layers)
    config["intermediate_size"] = widths[0]
    doubled = [widths[0] * (1 if layer in own else 2) for layer in range(layers)]
    config["use_double_wide_mlp"] = bool(shared) and widths == doubled
    if widths != doubled and len(set(widths)) > 1:
        raise metadata.refuse(f"{prefix}.feed_forward_length", "differs between layers that do not share a cache")

    heads = metadata.per_layer(f"{prefix}.attention.head_count_kv", layers, config["num_attention_heads"])
    by_kind = [sorted({heads[layer] for layer in range(layers) if is_full[layer] == full}) for full in (False, True)]
    if any(len(counts) > 1 for counts in by_kind):
        raise metadata.refuse(f"{prefix}.attention.head_count_kv", "differs between layers of one kind")
    (full_heads,) = by_kind[1]
    config["num_key_value_heads"] = by_kind[0][0] if by_kind[0] else full_heads

    without = [f"blk.{layer}.attn_v.weight" not in tensors for layer in own if is_full[layer]]
    config["attention_k_eq_v"] = all(without)
    if any(without) and not all(without):
        raise metadata.refuse(f"{prefix}.block_count", "includes full layers with attn_v.weight and without")
    if full_heads != config["num_key_value_heads"]:
        if not config["attention_k_eq_v"]:
            problem = f"is {full_heads} in full layers, which transformers has only where values are keys"
            raise metadata.refuse(f"{prefix}.attention.head_count_kv", problem)
        config["num_global_key_value_heads"] = full_heads


def without_drafts(
    architecture: Architecture, metadata: Metadata, tensors: dict[str, StoredTensor]
) -> dict[str, StoredTensor]:
    """The tensors but those of layers that draft, which stand behind the others (nextn_predict_layers)."""
    drafts = draft_layers(architecture, metadata)
    if not drafts:
        return tensors
    first = metadata.positive(f"{architecture.name}.block_count") - drafts
    layers = {name: LAYER.match(name) for name in tensors}
    return {name: tensors[name] for name, match in layers.items() if match is None or int(match[1]) < first}


def draft_layers(architecture: Architecture, metadata: Metadata) -> int:
    """How many of block_count's layers draft, which transformers leaves out."""
    if DRAFTS not in architecture.checked:
        return 0
    drafts = metadata.integer(f"{architecture.name}.{DRAFTS}", 0) or 0
    if drafts >= metadata.positive(f"{architecture.name}.block_count"):
        raise metadata.refuse(f"{architecture.name}.{DRAFTS}", f"is {drafts}, as many as there are layers")
    if drafts > MOST_DRAFTS:
        raise metadata.refuse(f"{architecture.name}.{DRAFTS}", f"is {drafts}; at most {MOST_DRAFTS} are read")
    return drafts
