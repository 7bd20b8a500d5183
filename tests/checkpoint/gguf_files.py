"""GGUF files for tests, written the way llama.cpp's converter does: gguf's own writer and its own table of names."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType
from transformers import (
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    LlamaConfig,
    MistralConfig,
    NemotronConfig,
    Phi3Config,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

TypeOf = Callable[[str, torch.Tensor], GGMLQuantizationType]
SIZES = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
# Small configs of unusual sizes: each architecture, with what its table row is about.
CONFIGS: dict[str, tuple[str, PreTrainedConfig]] = {
    "llama": ("llama", LlamaConfig(**SIZES, head_dim=24, rope_theta=1e5)),
    "llama-biases": ("llama", LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True, tie_word_embeddings=True)),
    "llama-llama3": ("llama", LlamaConfig(**SIZES, rope_parameters={"rope_theta": 5e5, **LLAMA3})),
    "llama-linear": (
        "llama",
        LlamaConfig(**SIZES, rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}),
    ),
    "mistral": ("llama", MistralConfig(**SIZES, sliding_window=32)),
    "qwen2": ("qwen2", Qwen2Config(**SIZES, tie_word_embeddings=True)),
    "qwen3": ("qwen3", Qwen3Config(**SIZES, head_dim=32)),
    "gemma": ("gemma", GemmaConfig(**SIZES, head_dim=24)),
    "gemma2": ("gemma2", Gemma2Config(**SIZES, head_dim=24, sliding_window=32, query_pre_attn_scalar=24)),
    "gemma3": (
        "gemma3",
        Gemma3TextConfig(**{**SIZES, "num_hidden_layers": 7}, head_dim=24, sliding_window=32, query_pre_attn_scalar=24),
    ),
    "phi3": ("phi3", Phi3Config(**SIZES, original_max_position_embeddings=256, partial_rotary_factor=0.75)),
    "phi3-longrope": (
        "phi3",
        Phi3Config(
            **SIZES,
            original_max_position_embeddings=64,
            rope_parameters={
                "rope_type": "longrope",
                "rope_theta": 1e4,
                "long_factor": [(15 + i) / 10 for i in range(8)],
                "short_factor": [(10 + i) / 10 for i in range(8)],
            },
        ),
    ),
    "nemotron": (
        "nemotron",
        NemotronConfig(
            **{k: v for k, v in SIZES.items() if k != "rms_norm_eps"}, norm_eps=1e-5, partial_rotary_factor=0.5
        ),
    ),
}


def random_model(config: PreTrainedConfig, seed: int = 0) -> torch.nn.Module:
    """A model of `config` whose every parameter is random (norms and biases too), float32."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.randn_like(parameter) * (0.1 if parameter.ndim == 1 or "norm" in name else 0.05))
    return model


def float32(name: str, tensor: torch.Tensor) -> GGMLQuantizationType:
    return GGMLQuantizationType.F32


def float16(name: str, tensor: torch.Tensor) -> GGMLQuantizationType:
    """As the converter's --outtype f16: vectors stay float32."""
    return GGMLQuantizationType.F32 if tensor.ndim == 1 else GGMLQuantizationType.F16


def write_gguf(
    path: Path,
    architecture: str,
    config: PreTrainedConfig,
    state: dict[str, torch.Tensor],
    type_of: TypeOf = float32,
    extra: dict[str, Any] | None = None,
    without: Iterable[str] = (),
) -> Path:
    """Write `state` as llama.cpp would; `extra` are more metadata pairs, `without` keys to leave out."""
    writer = gguf.GGUFWriter(path, architecture)
    pairs = {**metadata_of(architecture, config), **TINY_TOKENIZER, **(extra or {})}
    for key, value in pairs.items():
        if key not in without:
            add_pair(writer, key, value)
    arch = next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    for name, factors in rope_tensors(config).items():
        writer.add_tensor(name, factors)
    for name, tensor in state.items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        stored = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert stored is not None, name
        data = as_stored(architecture, config, name, tensor.float())
        kind = type_of(name, tensor)
        writer.add_tensor(stored, gguf.quantize(data.numpy(), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def as_stored(architecture: str, config: PreTrainedConfig, name: str, tensor: torch.Tensor) -> torch.Tensor:
    """llama.cpp's rewriting, LlamaModel.permute and the norms of Gemma and Nemotron (conversion/*.py)."""
    if architecture == "llama" and (".q_proj." in name or ".k_proj." in name):
        heads = config.num_attention_heads if ".q_proj." in name else config.num_key_value_heads
        halves = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, *tensor.shape[1:])
        return halves.swapaxes(1, 2).reshape(tensor.shape).contiguous()
    if architecture in ("gemma", "gemma2", "gemma3", "nemotron") and name.endswith("norm.weight"):
        return tensor + 1
    return tensor


def metadata_of(architecture: str, config: PreTrainedConfig) -> dict[str, Any]:
    """The pairs that conversion/*.py writes for `config`, as (key: value)."""
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rope = config.rope_parameters
    full = rope.get("full_attention", rope)
    pairs: dict[str, Any] = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "rope.freq_base": float(full["rope_theta"]),
        "attention.layer_norm_rms_epsilon": getattr(config, "rms_norm_eps", 1e-5),
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
    }
    if architecture == "llama":
        pairs |= {"vocab_size": config.vocab_size, "rope.dimension_count": head_dim}
    if architecture in ("phi3", "nemotron"):
        pairs["rope.dimension_count"] = int(full["partial_rotary_factor"] * head_dim)
    if architecture == "nemotron":
        pairs |= {"attention.layer_norm_epsilon": config.norm_eps, "rope.scaling.type": "none"}
    if architecture == "phi3":
        pairs["rope.scaling.original_context_length"] = config.original_max_position_embeddings
    if full["rope_type"] == "linear":
        pairs |= {"rope.scaling.type": "linear", "rope.scaling.factor": full["factor"]}
    if architecture in ("gemma2", "gemma3", "phi3") or config.model_type == "mistral":
        pairs["attention.sliding_window"] = config.sliding_window or 0
    if architecture == "gemma2":
        pairs["attn_logit_softcapping"] = config.attn_logit_softcapping
        pairs["final_logit_softcapping"] = config.final_logit_softcapping
    return {f"{architecture}.{key}": value for key, value in pairs.items()}


def rope_tensors(config: PreTrainedConfig) -> dict[str, np.ndarray]:
    """rope_freqs for llama3, rope_factors_* for longrope: generate_extra_tensors of conversion/llama.py and phi.py."""
    rope = config.rope_parameters
    if rope.get("rope_type") == "longrope":
        return {
            f"rope_factors_{length}.weight": np.array(rope[f"{length}_factor"], np.float32)
            for length in ("long", "short")
        }
    if rope.get("rope_type") != "llama3":
        return {}
    dim = config.head_dim
    factors = []
    for freq in 1.0 / (rope["rope_theta"] ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)):
        wavelength = 2 * torch.pi / freq
        if wavelength < 8192 / rope["high_freq_factor"]:
            factors.append(1.0)
        elif wavelength > 8192 / rope["low_freq_factor"]:
            factors.append(rope["factor"])
        else:
            smooth = (8192 / wavelength - rope["low_freq_factor"]) / (
                rope["high_freq_factor"] - rope["low_freq_factor"]
            )
            factors.append(float(1 / ((1 - smooth) / rope["factor"] + smooth)))
    return {"rope_freqs.weight": np.array(factors, np.float32)}


TINY_TOKENIZER: dict[str, Any] = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "gpt-2",
    "tokenizer.ggml.tokens": ["<pad>", "<s>", "<|im_end|>", *(chr(33 + i) for i in range(90)), "Ġ", "ab", "Ġab"],
    "tokenizer.ggml.token_type": [3, 3, 3, *[1] * 93],
    "tokenizer.ggml.merges": ["a b", "Ġ ab"],
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
    "tokenizer.ggml.padding_token_id": 0,
    "tokenizer.chat_template": "{% for m in messages %}<s>{{ m.content }}<|im_end|>{% endfor %}",
}


def add_pair(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    """One metadata pair in the type that converters use for such a value."""
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)
