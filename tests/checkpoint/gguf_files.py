"""GGUF files for tests, written the way llama.cpp's converter does: gguf's own writer and its own table of names."""

from collections.abc import Callable, Iterable
from copy import deepcopy
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType
from gguf_configs import FULL, SLIDING
from gguf_hybrids import HYBRIDS, gathered, hybrid_as_stored, hybrid_pairs
from gguf_latent import LATENT, latent_as_stored, latent_pairs
from gguf_mixtures import MIXTURES, mixture_as_stored, mixture_pairs
from transformers import PreTrainedConfig

TypeOf = Callable[[str, torch.Tensor], GGMLQuantizationType]


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
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers + 1)  # one may draft
    for name, factors in rope_tensors(config).items():
        writer.add_tensor(name, factors)
    for name, tensor in gathered(architecture, state).items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        for stored_name, data in as_stored(architecture, config, name, tensor.float()):
            stored = (
                stored_name if stored_name.startswith("blk.") else names.get_name(stored_name, (".weight", ".bias"))
            )
            assert stored is not None, name
            kind = type_of(name, data)
            writer.add_tensor(stored, gguf.quantize(data.contiguous().numpy(), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def as_stored(
    architecture: str, config: PreTrainedConfig, name: str, tensor: torch.Tensor
) -> list[tuple[str, torch.Tensor]]:
    """llama.cpp's rewriting (modify_tensors of conversion/*.py): LlamaModel.permute, the norms of Gemma and Nemotron,
    experts apart; under the name that its table of tensors looks up."""
    if architecture in HYBRIDS:
        return hybrid_as_stored(architecture, config, name, tensor)
    if architecture in MIXTURES:
        return mixture_as_stored(architecture, config, name, tensor)
    if architecture in LATENT:
        return latent_as_stored(architecture, config, name, tensor)
    if architecture in ("llama", "granite", "smollm3") and (".q_proj." in name or ".k_proj." in name):
        heads = config.num_attention_heads if ".q_proj." in name else config.num_key_value_heads
        halves = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, *tensor.shape[1:])
        return [(name, halves.swapaxes(1, 2).reshape(tensor.shape).contiguous())]
    if architecture in ("gemma", "gemma2", "gemma3", "nemotron") and name.endswith("norm.weight"):
        return [(name, tensor + 1)]
    if architecture == "qwen3moe" and name.endswith("gate_up_proj"):
        gate, up = tensor.chunk(2, 1)
        start = name.removesuffix("gate_up_proj")
        return [(f"{start}gate_proj.weight", gate), (f"{start}up_proj.weight", up)]
    if architecture == "gpt-oss" and "gate_up_proj" in name:
        start, suffix = name.split("gate_up_proj")
        ending = "bias" if suffix == "_bias" else "weight"
        rows = tensor if ending == "bias" else tensor.transpose(1, 2)  # (E, 2I) or (E, 2I, C)
        return [(f"{start}gate_proj.{ending}", rows[:, ::2]), (f"{start}up_proj.{ending}", rows[:, 1::2])]
    if architecture == "gpt-oss" and name.endswith("down_proj"):
        return [(f"{name}.weight", tensor.transpose(1, 2))]
    if name.endswith(("router.scale", "router.per_expert_scale")):
        layer = name.split(".")[2]
        ending = "ffn_gate_inp" if name.endswith("router.scale") else "ffn_down_exps"
        return [(f"blk.{layer}.{ending}.scale", tensor)]
    if name.endswith("conv.conv.weight"):  # "conv op requires 2d tensor"
        return [(name, tensor.squeeze(1))]
    if name.endswith("down_proj_bias"):
        return [(name.replace("_bias", ".bias"), tensor)]
    if name.endswith((".sinks", ".layer_scalar", ".gate_up_proj", "experts.down_proj")):
        return [(f"{name}.weight", tensor)]
    return [(name, tensor)]


def metadata_of(architecture: str, config: PreTrainedConfig) -> dict[str, Any]:
    """The pairs that conversion/*.py writes for `config`, as (key: value)."""
    for architectures, pairs_of in ((HYBRIDS, hybrid_pairs), (MIXTURES, mixture_pairs), (LATENT, latent_pairs)):
        if architecture in architectures:
            return {f"{architecture}.{key}": value for key, value in pairs_of(architecture, config).items()}
    if architecture == "gemma4":
        config = deepcopy(config)
        config.allow_global_per_layer_attribute_access = True
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
    if architecture in ("granite", "smollm3"):
        pairs |= {"vocab_size": config.vocab_size, "rope.dimension_count": head_dim}
    if architecture == "granite":
        pairs |= {
            "attention.scale": config.attention_multiplier,
            "embedding_scale": config.embedding_multiplier,
            "residual_scale": config.residual_multiplier,
            "logit_scale": config.logits_scaling,
        }
        del pairs["attention.key_length"], pairs["attention.value_length"]
    if full["rope_type"] == "linear":
        pairs |= {"rope.scaling.type": "linear", "rope.scaling.factor": full["factor"]}
    if full["rope_type"] == "yarn":
        pairs |= {
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": full["factor"],
            "rope.scaling.original_context_length": full["original_max_position_embeddings"],
            "rope.scaling.yarn_beta_fast": full["beta_fast"],
            "rope.scaling.yarn_beta_slow": full["beta_slow"],
        }
    sliding = rope.get(SLIDING)
    if sliding is not None:
        pairs["rope.freq_base_swa"] = float(sliding["rope_theta"])
    if architecture in ("gemma2", "gemma3", "phi3", "gpt-oss", "gemma4") or config.model_type == "olmo3":
        pairs["attention.sliding_window"] = config.sliding_window or 0
    if config.model_type in ("olmo3", "gemma4_text"):
        pairs["attention.sliding_window_pattern"] = [kind == SLIDING for kind in config.layer_types]
    if architecture in ("gemma2", "gemma4"):
        pairs["final_logit_softcapping"] = config.final_logit_softcapping
    if architecture == "gemma2":
        pairs["attn_logit_softcapping"] = config.attn_logit_softcapping
    if architecture == "qwen3moe":
        pairs |= {
            "expert_count": config.num_experts,
            "expert_used_count": config.num_experts_per_tok,
            "expert_feed_forward_length": config.moe_intermediate_size,
        }
    if architecture == "gpt-oss":
        pairs |= {
            "expert_count": config.num_local_experts,
            "expert_used_count": config.num_experts_per_tok,
            "expert_feed_forward_length": config.intermediate_size,
        }
    if architecture == "lfm2":
        kv_heads = [0 if kind == "conv" else config.num_key_value_heads for kind in config.layer_types]
        pairs |= {"vocab_size": config.vocab_size, "shortconv.l_cache": config.conv_L_cache}
        pairs |= {"attention.head_count_kv": kv_heads, "attention.layer_norm_rms_epsilon": config.norm_eps}
        del pairs["attention.key_length"], pairs["attention.value_length"]  # written of a config's own head_dim alone
    if architecture == "gemma4":
        pairs |= gemma4_pairs(config)
    return {f"{architecture}.{key}": value for key, value in pairs.items()}


def gemma4_pairs(config: PreTrainedConfig) -> dict[str, Any]:
    """Gemma4Model.set_gguf_parameters of conversion/gemma.py."""
    layers, full = config.num_hidden_layers, config.per_layer_config[config.layer_types.index(FULL)]
    pairs: dict[str, Any] = {
        "attention.shared_kv_layers": config.num_kv_shared_layers,
        "embedding_length_per_layer_input": config.hidden_size_per_layer_input,
        "attention.key_length": full.head_dim,
        "attention.value_length": full.head_dim,
        "attention.key_length_swa": config.head_dim,
        "attention.value_length_swa": config.head_dim,
        "rope.dimension_count": full.head_dim,
        "rope.dimension_count_swa": config.head_dim,
    }
    if config.use_double_wide_mlp:
        own = layers - config.num_kv_shared_layers
        pairs["feed_forward_length"] = [config.intermediate_size * (1 if i < own else 2) for i in range(layers)]
    if full.num_key_value_heads != config.num_key_value_heads:
        pairs["attention.head_count_kv"] = [
            config.num_key_value_heads if kind == SLIDING else full.num_key_value_heads for kind in config.layer_types
        ]
    if config.enable_moe_block:
        pairs |= {
            "expert_count": config.num_experts,
            "expert_used_count": config.top_k_experts,
            "expert_feed_forward_length": config.moe_intermediate_size,
        }
    return pairs


def rope_tensors(config: PreTrainedConfig) -> dict[str, np.ndarray]:
    """rope_freqs for llama3, rope_factors_* for longrope: generate_extra_tensors of conversion/llama.py and phi.py."""
    rope = getattr(config, "rope_parameters", None) or {}
    full = rope.get(FULL, {})
    if full.get("rope_type") == "proportional":
        half = config.per_layer_config[config.layer_types.index(FULL)].head_dim // 2
        turning = int(half * full["partial_rotary_factor"])
        return {"rope_freqs.weight": np.array([1.0] * turning + [1e30] * (half - turning), np.float32)}
    if rope.get("rope_type") == "longrope":
        return {
            f"rope_factors_{length}.weight": np.array(rope[f"{length}_factor"], np.float32)
            for length in ("long", "short")
        }
    if rope.get("rope_type") != "llama3":
        return {}
    dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
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
