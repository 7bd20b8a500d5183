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
    scaling = _stated_scaling(architecture, metadata)
    if FREQUENCIES in factors:
        llama3 = _llama3_scaling(metadata, config, factors[FREQUENCIES])
        if llama3 and scaling:
            raise metadata.refuse(FREQUENCIES, "and a rope.scaling.type together are not supported")
        scaling = llama3 or scaling
    if architecture.rope_tensors == "longrope":
        original = metadata.integer(f"{architecture.name}.rope.scaling.original_context_length")
        settings["original_max_position_embeddings"] = original or config["max_position_embeddings"]
        scaling = _longrope_scaling(architecture, metadata, {**config, **settings}, factors) or scaling
    return {**settings, "rope_scaling": scaling} if scaling else settings


def _partial_rotary(architecture: Architecture, metadata: Metadata, config: dict[str, Any]) -> dict[str, Any]:
    key, head_dim = f"{architecture.name}.rope.dimension_count", config["head_dim"]
    width = metadata.integer(key, head_dim)
    if width == head_dim and not architecture.partial_rotary:
        return {}
    if not width or width > head_dim or width % 2 or not architecture.partial_rotary:
        raise metadata.refuse(key, f"is {width}, but head_dim is {head_dim}")
    return {"partial_rotary_factor": width / head_dim}


def _stated_scaling(architecture: Architecture, metadata: Metadata) -> dict[str, Any] | None:
    """rope.scaling.* as rope_scaling; None when there is none. Longrope's factors come from tensors instead."""
    prefix = f"{architecture.name}.rope.scaling"
    kind = metadata.text(f"{prefix}.type", "none")
    factor = metadata.number(f"{prefix}.factor")
    factor = 1.0 if factor is None else factor
    if kind == "none" or (kind == "longrope" and architecture.rope_tensors == "longrope"):
        return None
    if factor <= 0:
        raise metadata.refuse(f"{prefix}.factor", f"is {factor}")
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor} if factor != 1.0 else None
    if kind == "yarn":
        optional = {
            "attention_factor": metadata.number(f"{prefix}.yarn_attn_factor"),
            "beta_fast": metadata.number(f"{prefix}.yarn_beta_fast"),
            "beta_slow": metadata.number(f"{prefix}.yarn_beta_slow"),
        }
        if metadata.number(f"{prefix}.yarn_ext_factor", 1.0) != 1.0:
            raise metadata.refuse(f"{prefix}.yarn_ext_factor", "is not 1, which transformers cannot express")
        return {
            "rope_type": "yarn",
            "factor": factor,
            "original_max_position_embeddings": metadata.positive(f"{prefix}.original_context_length"),
            **{key: value for key, value in optional.items() if value is not None},
        }
    raise metadata.refuse(f"{prefix}.type", f"is {kind!r}; known for {architecture.name} are none, linear and yarn")


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
) -> dict[str, Any] | None:
    if not factors:
        return None
    for name in (LONG, SHORT):
        if name not in factors:
            raise metadata.refuse(name, "is missing, but its counterpart is there")
    scaling: dict[str, Any] = {
        "rope_type": "longrope",
        "long_factor": _decimals(factors[LONG]),
        "short_factor": _decimals(factors[SHORT]),
    }
    stated = metadata.number(f"{architecture.name}.rope.scaling.attn_factor")
    original = config["original_max_position_embeddings"]
    if original < 2:
        raise metadata.refuse(f"{architecture.name}.rope.scaling.original_context_length", f"is {original}")
    ratio = config["max_position_embeddings"] / original
    implied = sqrt(1 + log(ratio) / log(original)) if ratio > 1.0 else 1.0
    if stated is not None and abs(stated - implied) > 1e-6:
        scaling["attention_factor"] = stated
    return scaling


def _decimals(values: Tensor) -> list[float]:
    """Float32 values as the shortest decimals that round to them: what a config.json would say."""
    return [float(str(value)) for value in values.float().flatten().numpy()]
