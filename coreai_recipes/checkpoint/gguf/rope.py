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
ROPE_TENSORS = {"llama3": {FREQUENCIES}, "longrope": {LONG, SHORT}, None: set[str]()}


def rope_settings(
    architecture: Architecture, metadata: Metadata, config: dict[str, Any], factors: dict[str, Tensor]
) -> dict[str, Any]:
    """rope_scaling and partial_rotary_factor, as far as the file has them.

    `factors` are the file's ROPE_TENSORS. Raises CheckpointError, by key, for what transformers has no word for.
    """
    settings = {**_partial_rotary(architecture, metadata, config)}
    prefix = f"{architecture.name}.rope.scaling"
    if architecture.rope_tensors == "longrope":
        original = metadata.integer(f"{prefix}.original_context_length")
        settings["original_max_position_embeddings"] = original or config["max_position_embeddings"]
        if factors:
            scaling = _longrope_scaling(architecture, metadata, {**config, **settings}, factors)
            return {**settings, "rope_scaling": scaling}
    scaling = _stated_scaling(architecture, metadata, config, _positive(metadata, f"{prefix}.attn_factor"))
    if FREQUENCIES in factors:
        llama3 = _llama3_scaling(metadata, config, factors[FREQUENCIES])
        if llama3 and scaling:
            raise metadata.refuse(FREQUENCIES, "and a rope.scaling.factor together are not supported")
        scaling = llama3 or scaling
    return {**settings, "rope_scaling": scaling} if scaling else settings


def _positive(metadata: Metadata, key: str) -> float:
    """A factor that is 1 where the file does not state it."""
    value = metadata.number(key, 1.0)
    if not value or value < 0:
        raise metadata.refuse(key, f"is {value}")
    return value


def _partial_rotary(architecture: Architecture, metadata: Metadata, config: dict[str, Any]) -> dict[str, Any]:
    key, head_dim = f"{architecture.name}.rope.dimension_count", config["head_dim"]
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
    if magnitude != 1.0:
        scaling["attention_factor"] = magnitude * (0.1 * log(factor) + 1.0 if factor > 1.0 else 1.0)
    return scaling


def _llama3_scaling(metadata: Metadata, config: dict[str, Any], found: Tensor) -> dict[str, Any] | None:
    factors = found.double().flatten().numpy()
    if factors.size != config["head_dim"] // 2:
        raise metadata.refuse(FREQUENCIES, f"has {factors.size} factors for a head_dim of {config['head_dim']}")
    if np.all(factors == 1.0):
        return None
    for scaling in load_table("architectures")["llama3_scalings"]:
        expected = llama3_factors(scaling, config["rope_theta"], config["head_dim"])
        # llama.cpp computes them in float32, where the theta^x of its day is good to some units in the last place.
        if np.allclose(factors, expected, rtol=1e-4, atol=0):
            return {"rope_type": "llama3", **scaling}
    raise metadata.refuse(FREQUENCIES, "holds rotary factors that are those of no published llama3 rope_scaling")


def llama3_factors(scaling: dict[str, Any], theta: float, head_dim: int) -> np.ndarray:
    """What divides each of the head_dim / 2 frequencies (llama.cpp, LlamaModel.generate_extra_tensors), float64."""
    original, factor = scaling["original_max_position_embeddings"], scaling["factor"]
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    wavelength = 2 * pi * theta ** (np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    smooth = np.clip((original / wavelength - low) / (high - low), 0.0, 1.0)
    return np.asarray(1 / ((1 - smooth) / factor + smooth))


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
