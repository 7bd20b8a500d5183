"""The rotary settings of a GGUF file in the words of a config.json: rope_theta's companions."""

from math import log, pi, sqrt
from typing import Any

import numpy as np
from torch import Tensor

from coreai_recipes.checkpoint.gguf.architecture import Architecture, load_table
from coreai_recipes.checkpoint.gguf.metadata import Metadata

FREQUENCIES = "rope_freqs.weight"
LONG, SHORT = "rope_factors_long.weight", "rope_factors_short.weight"
# Tensors that hold rotary factors and are no weights, by Architecture.rope_tensors.
ROPE_TENSORS = {
    "llama3": (FREQUENCIES,),
    "proportional": (FREQUENCIES,),
    "longrope": (LONG, SHORT),
    None: (),
}
UNTURNED = 1e29  # Gemma 4's converter divides the frequencies that do not turn by 1e30


def rope_settings(
    architecture: Architecture, metadata: Metadata, config: dict[str, Any], factors: dict[str, Tensor]
) -> dict[str, Any]:
    """rope_scaling and partial_rotary_factor as far as the file has them, or rope_parameters where each kind of layer
    has its own.

    `factors` are the file's ROPE_TENSORS. Raises CheckpointError, by key, for what transformers has no word for.
    """
    prefix = f"{architecture.name}.rope"
    settings = _partial_rotary(architecture, metadata, config)
    if architecture.rope_tensors == "longrope":
        original = metadata.integer(f"{prefix}.scaling.original_context_length")
        settings["original_max_position_embeddings"] = original or config["max_position_embeddings"]
        if factors:
            longrope = _longrope_scaling(architecture, metadata, config | settings, factors)
            return {**settings, "rope_scaling": longrope}
    magnitude = _positive(metadata, f"{prefix}.scaling.attn_factor")
    stated = _stated_scaling(architecture, metadata, config, magnitude)
    found: dict[str, Any] | None = None
    if architecture.rope_tensors == "proportional":
        found = _proportional(metadata, config, factors)
    elif FREQUENCIES in factors:
        found = _llama3_scaling(metadata, config, factors[FREQUENCIES])
    if found and stated:
        raise metadata.refuse(FREQUENCIES, "and a rope.scaling.factor together are not supported")
    scaling = found or stated
    slides = "sliding_attention" in config.get("layer_types", ())
    if architecture.rope_per_kind == "always" or (architecture.rope_per_kind == "sliding" and slides):
        own = architecture.sliding_theta or config["rope_theta"]
        theta = metadata.number(f"{prefix}.freq_base_swa", own) or 0.0
        if theta <= 0:
            raise metadata.refuse(f"{prefix}.freq_base_swa", f"is {theta}")
        if architecture.rope_per_kind == "sliding" and theta != config["rope_theta"]:
            problem = f"is {theta}, and llama.cpp rotates sliding layers by rope.freq_base, {config['rope_theta']}"
            raise metadata.refuse(f"{prefix}.freq_base_swa", problem)
        full = {**(scaling or {"rope_type": "default"}), "rope_theta": config["rope_theta"]}
        sliding = {"rope_type": "default", "rope_theta": theta}
        return {**settings, "rope_parameters": {"full_attention": full, "sliding_attention": sliding}}
    if scaling:
        return {**settings, "rope_scaling": scaling}
    if architecture.yarn:  # a config that says nothing is scaled in these families
        return {**settings, "rope_parameters": {"rope_type": "default", "rope_theta": config["rope_theta"]}}
    return settings


def _positive(metadata: Metadata, key: str) -> float:
    """A factor that is 1 where the file does not state it."""
    value = metadata.number(key, 1.0)
    if not value or value < 0:
        raise metadata.refuse(key, f"is {value}")
    return value


def _partial_rotary(architecture: Architecture, metadata: Metadata, config: dict[str, Any]) -> dict[str, Any]:
    key, head_dim = f"{architecture.name}.rope.dimension_count", config.get("global_head_dim", config["head_dim"])
    if architecture.sizes_per_kind:
        sliding = metadata.integer(f"{key}_swa", metadata.integer(key, head_dim))
        if sliding != config["head_dim"]:
            raise metadata.refuse(f"{key}_swa", f"is {sliding}, but head_dim is {config['head_dim']}")
    width = metadata.integer(key, head_dim)
    if width == head_dim and not architecture.partial_rotary:
        return {}
    if not width or width > head_dim or width % 2 or not architecture.partial_rotary:
        raise metadata.refuse(key, f"is {width}, but head_dim is {head_dim}")
    return {"partial_rotary_factor": width / head_dim}


def _stated_scaling(
    architecture: Architecture, metadata: Metadata, config: dict[str, Any], magnitude: float
) -> dict[str, Any] | None:
    """rope.scaling.* as rope_scaling; None when nothing is scaled. Longrope's factors come from tensors instead.

    `magnitude` is rope.scaling.attn_factor, by which llama.cpp multiplies cos and sin of every architecture.
    """
    prefix = f"{architecture.name}.rope.scaling"
    kind = metadata.text(f"{prefix}.type", "linear")
    factor = metadata.number(f"{prefix}.factor", metadata.number(f"{architecture.name}.rope.scale_linear"))
    factor = factor or 1.0  # llama.cpp takes 0 for "not scaled"
    if factor < 0:
        raise metadata.refuse(f"{prefix}.factor", f"is {factor}")
    if kind not in ("none", "linear", "yarn"):
        raise metadata.refuse(f"{prefix}.type", f"is {kind!r}; known for {architecture.name} are none, linear and yarn")
    if kind == "none" or factor == 1.0:
        if magnitude != 1.0:
            raise metadata.refuse(f"{prefix}.attn_factor", f"is {magnitude}, which only a scaled rotary can have")
        return None
    if kind == "linear":
        if magnitude != 1.0:
            raise metadata.refuse(f"{prefix}.attn_factor", f"is {magnitude}, which linear scaling cannot express")
        return {"rope_type": "linear", "factor": factor}
    original = metadata.integer(f"{prefix}.original_context_length") or config["max_position_embeddings"]
    scaling: dict[str, Any] = {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": original,
        **architecture.yarn,
    }
    for key in ("beta_fast", "beta_slow"):
        value = metadata.number(f"{prefix}.yarn_{key}")
        if value is not None:
            scaling[key] = value
    share = metadata.number(f"{prefix}.yarn_log_multiplier")
    if share:  # a tenth of mscale_all_dim, which mscale is too: the quotient of the two multiplies cos and sin
        scaling.update(mscale=round(10 * share, 6), mscale_all_dim=round(10 * share, 6))
    if magnitude != 1.0:
        scaling["attention_factor"] = magnitude * (0.1 * log(factor) + 1.0 if factor > 1.0 else 1.0)
    return scaling


def _llama3_scaling(metadata: Metadata, config: dict[str, Any], found: Tensor) -> dict[str, Any] | None:
    factors = found.double().flatten().numpy()
    if factors.size != config["head_dim"] // 2:
        raise metadata.refuse(FREQUENCIES, f"has {factors.size} factors for a head_dim of {config['head_dim']}")
    if np.all(factors == 1.0):
        return None
    for scaling in load_table("shared")["llama3_scalings"]:
        expected = llama3_factors(scaling, config["rope_theta"], config["head_dim"])
        # llama.cpp computes them in float32, where the theta^x of its day is good to some units in the last place.
        if np.allclose(factors, expected, rtol=1e-4, atol=0):
            return {"rope_type": "llama3", **scaling}
    raise metadata.refuse(FREQUENCIES, "holds rotary factors that match no published llama3 rope_scaling")


def llama3_factors(scaling: dict[str, Any], theta: float, head_dim: int) -> np.ndarray:
    """What divides each of the head_dim / 2 frequencies (llama.cpp, LlamaModel.generate_extra_tensors), float64."""
    original, factor = scaling["original_max_position_embeddings"], scaling["factor"]
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    wavelength = 2 * pi * theta ** (np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    smooth = np.clip((original / wavelength - low) / (high - low), 0.0, 1.0)
    return np.asarray(1 / ((1 - smooth) / factor + smooth))


def _proportional(metadata: Metadata, config: dict[str, Any], factors: dict[str, Tensor]) -> dict[str, Any]:
    """The share of a full layer's head that turns: what is divided by 1 turns, what is divided by 1e30 does not."""
    half = config["global_head_dim"] // 2
    if FREQUENCIES not in factors:
        raise metadata.refuse(FREQUENCIES, "is missing: it sets how much of a head rotates")
    found = factors[FREQUENCIES].double().flatten().numpy()
    if found.size != half:
        raise metadata.refuse(FREQUENCIES, f"has {found.size} factors for a head_dim of {2 * half}")
    turning = int(np.sum(found == 1.0))
    share = turning / half
    if not (np.all(found[:turning] == 1.0) and np.all(found[turning:] >= UNTURNED)) or int(share * half) != turning:
        raise metadata.refuse(FREQUENCIES, "must hold ones, then 1e30 for what does not rotate")
    return {"rope_type": "proportional", "partial_rotary_factor": share}


def _longrope_scaling(
    architecture: Architecture, metadata: Metadata, config: dict[str, Any], factors: dict[str, Tensor]
) -> dict[str, Any]:
    prefix = f"{architecture.name}.rope.scaling"
    for name in (LONG, SHORT):
        if name not in factors:
            raise metadata.refuse(name, "is missing, but its counterpart is there")
    kind = metadata.text(f"{prefix}.type", "longrope")
    if kind not in ("none", "longrope", "linear"):
        raise metadata.refuse(f"{prefix}.type", f"is {kind!r}, but there are {LONG} and {SHORT}")
    for key in (f"{prefix}.factor", f"{architecture.name}.rope.scale_linear"):
        if kind != "none" and metadata.number(key, 1.0) not in (0.0, 1.0):
            raise metadata.refuse(key, f"is {metadata.number(key)}, but there are {LONG} and {SHORT}")
    scaling: dict[str, Any] = {
        "rope_type": "longrope",
        "long_factor": _decimals(factors[LONG]),
        "short_factor": _decimals(factors[SHORT]),
    }
    original = config["original_max_position_embeddings"]
    if original < 2:
        raise metadata.refuse(f"{prefix}.original_context_length", f"is {original}")
    ratio = config["max_position_embeddings"] / original
    implied = sqrt(1 + log(ratio) / log(original)) if ratio > 1.0 else 1.0
    # The converter always writes the factor beside these tensors; where it is missing the model's own rule stands.
    stated = _positive(metadata, f"{prefix}.attn_factor") if metadata.has(f"{prefix}.attn_factor") else implied
    if abs(stated - implied) > 1e-6:
        scaling["attention_factor"] = stated
    return scaling


def _decimals(values: Tensor) -> list[float]:
    """Float32 values as the shortest decimals that round to them: what a config.json would say."""
    return [float(str(value)) for value in values.float().flatten().numpy()]
