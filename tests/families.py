"""Small random transformers models and the recipes that must equal them, one function a family.

    pair = FAMILIES["gemma2"]()
    pair.model      # transformers' own, float32, eager, every parameter off its default
    pair.recipe     # ours; `pair.decoder()` is built from it and filled with the model's weights

Sizes are unusual on purpose: no two axes are equal, head_dim is not hidden_size / num_heads, and nothing is a power of
two where that would hide a rounding. `context` and `functions` go into the recipe's export, other keywords into
transformers' config.
"""

import copy
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from small_models import small_model
from torch import Tensor

from coreai_recipes.decoder.model import Decoder, build_decoder, fill
from coreai_recipes.primitives.layer import PLAIN, Form
from coreai_recipes.recipe.schema import Recipe
from coreai_recipes.weights.folding import stored_as

VOCAB, HIDDEN, INTERMEDIATE, LAYERS, CONTEXT = 131, 48, 88, 3, 64
HEADS, KV_HEADS, HEAD_DIM, FUNCTIONS = 6, 2, 20, {"prefill": 16, "score": 5}

ROOT_NAMES = {
    "embedding": "model.embed_tokens",
    "norm": "model.norm",
    "head": "lm_head",
    "per_layer_table": "model.embed_tokens_per_layer",
    "per_layer.projection": "model.per_layer_model_projection",
    "per_layer.norm": "model.per_layer_projection_norm",
}
LAYER_NAMES = {
    "attention_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
    **{f"attention.{ours}": f"self_attn.{ours}_proj" for ours in "qkvo"},
    **{f"attention.{ours}": f"self_attn.{ours}" for ours in ("q_norm", "k_norm")},
    **{f"mlp.{ours}": f"mlp.{ours}_proj" for ours in ("gate", "up", "down")},
}
SANDWICH_NAMES = {
    **LAYER_NAMES,
    "attention_post_norm": "post_attention_layernorm",
    "mlp_norm": "pre_feedforward_layernorm",
    "mlp_post_norm": "post_feedforward_layernorm",
}


# where a whole name is given, the last word differs too
GEMMA4_NAMES = {
    **SANDWICH_NAMES,
    "scalar": "layer_scalar",
    "per_layer.gate": "per_layer_input_gate",
    "per_layer.projection": "per_layer_projection",
    "per_layer.norm": "post_per_layer_input_norm",
    "dense_post_norm": "post_feedforward_layernorm_1",
    "experts.pre_norm": "pre_feedforward_layernorm_2",
    "experts.post_norm": "post_feedforward_layernorm_2",
    "experts.router.scale": "router.scale",
    "experts.router.expert_scale": "router.per_expert_scale",
    "experts.router.proj": "router.proj",
    "experts.gate_up": "experts.gate_up_proj",
    "experts.down": "experts.down_proj",
}


@dataclass(frozen=True)
class Pair:
    """A recipe, the transformers model that it must equal, and how the model names a layer's tensors."""

    recipe: Recipe
    model: Any
    layer_names: dict[str, str] = field(default_factory=lambda: LAYER_NAMES)

    def decoder(self, recipe: Recipe | None = None, form: Form = PLAIN) -> Decoder:
        """The recipe's Decoder (or that of another `recipe`, or in another form) filled with the model's weights."""
        decoder = build_decoder(recipe or self.recipe, form)
        fill(decoder, lambda name: self.read(name, recipe, form))
        return decoder

    def read(self, name: str, recipe: Recipe | None = None, form: Form = PLAIN) -> Tensor:
        """The model's tensor for our parameter `name`, rewritten as `form` wants it."""
        owner, _, leaf = name.rpartition(".")
        layer = re.fullmatch(r"layers\.(\d+)\.?(.*)", owner)
        if layer is None:
            theirs = f"{ROOT_NAMES[owner]}.{leaf}"
        elif f"{layer[2]}.{leaf}".lstrip(".") in self.layer_names:
            theirs = f"model.layers.{layer[1]}.{self.layer_names[f'{layer[2]}.{leaf}'.lstrip('.')]}"
        else:
            theirs = f"model.layers.{layer[1]}.{self.layer_names[layer[2]]}.{leaf}"
        tensor = self.model.state_dict()[theirs]
        return stored_as(recipe or self.recipe, name, form).apply(tensor.detach())


def llama(*, bias: bool = False, scaling: dict[str, Any] | None = None, **changes: Any) -> Pair:
    """Llama; with `bias` on all projections; with `scaling` as a recipe says it."""
    from transformers import LlamaConfig, LlamaForCausalLM

    theta = changes.pop("theta", 10000.0)
    config, export = _config(
        LlamaConfig,
        changes,
        {"attention_bias": bias, "mlp_bias": bias, "rope_parameters": rope_parameters(theta, scaling)},
    )
    rotary = {"kind": "full", "theta": theta, "scaling": scaling}
    kind = _kind(config, rotary, bias="qkvo" if bias else "none", mlp_bias=bias)
    return Pair(_recipe("llama", config, {"full": kind}, export), small_model(LlamaForCausalLM, config))


def llama3_scaled(**changes: Any) -> Pair:
    """Llama 3.2's scaling, with an original context that puts frequencies into all three of its bands."""
    scaling = {
        "kind": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_context": 128,
    }
    return llama(scaling=scaling, theta=500000.0, **changes)


def llama_linear(**changes: Any) -> Pair:
    return llama(scaling={"kind": "linear", "factor": 4.0}, **changes)


def llama_biased(**changes: Any) -> Pair:
    return llama(bias=True, **changes)


def llama_tied(**changes: Any) -> Pair:
    return llama(tie_word_embeddings=True, **changes)


def qwen2(**changes: Any) -> Pair:
    """Qwen2: biases on q, k and v; the layers from `max_window_layers` on slide."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    sliding = {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1}
    config, export = _config(Qwen2Config, changes, {**sliding, "rope_parameters": rope_parameters(1e6)})
    rotary = {"kind": "full", "theta": 1e6}
    kinds = {
        "full": _kind(config, rotary, bias="qkv"),
        "sliding": _kind(config, rotary, window=config.sliding_window, bias="qkv"),
    }
    return Pair(_recipe("qwen2", config, kinds, export), small_model(Qwen2ForCausalLM, config))


def qwen3(**changes: Any) -> Pair:
    """Qwen3: queries and keys are normed per head."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config, export = _config(Qwen3Config, changes, {"rope_parameters": rope_parameters(1e6)})
    kind = _kind(config, {"kind": "full", "theta": 1e6}, qk_norm={"over": "head"})
    return Pair(_recipe("qwen3", config, {"full": kind}, export), small_model(Qwen3ForCausalLM, config))


def mistral(**changes: Any) -> Pair:
    """Mistral: every layer slides."""
    from transformers import MistralConfig, MistralForCausalLM

    config, export = _config(MistralConfig, changes, {"sliding_window": 7, "rope_parameters": rope_parameters(10000.0)})
    kind = _kind(config, {"kind": "full", "theta": 10000.0}, window=config.sliding_window)
    return Pair(_recipe("mistral", config, {"sliding": kind}, export), small_model(MistralForCausalLM, config))


def gemma2(**changes: Any) -> Pair:
    """Gemma 2: 1+w norms in a sandwich, softcaps low enough to bend, a scale of its own, sliding and full in turn."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    own = {
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": 13,
        "attn_logit_softcapping": 5.0,
        "final_logit_softcapping": 7.0,
        "sliding_window": 7,
        "tie_word_embeddings": True,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "rope_parameters": rope_parameters(10000.0),
    }
    config, export = _config(Gemma2Config, changes, own)
    rotary = {"kind": "full", "theta": 10000.0}
    attention = {"scale": 13**-0.5, "softcap": 5.0}
    kinds = {
        "sliding": _kind(config, rotary, window=config.sliding_window, activation="gelu_tanh", **attention),
        "full": _kind(config, rotary, activation="gelu_tanh", **attention),
    }
    recipe = _recipe("gemma2", config, kinds, export, **_gemma_model(softcap=7.0))
    return Pair(recipe, small_model(Gemma2ForCausalLM, config), SANDWICH_NAMES)


def gemma3(**changes: Any) -> Pair:
    """Gemma 3: as Gemma 2 with q and k norms (1+w) and without softcaps; a rotary of its own for each kind."""
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    linear = {"kind": "linear", "factor": 8.0}
    own = {
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": 13,
        "sliding_window": 7,
        "tie_word_embeddings": True,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
        "rope_parameters": {
            "sliding_attention": rope_parameters(10000.0),
            "full_attention": rope_parameters(1e6, linear),
        },
    }
    config, export = _config(Gemma3TextConfig, changes, own)
    shared = {"activation": "gelu_tanh", "scale": 13**-0.5, "qk_norm": {"over": "head"}}
    kinds = {
        "sliding": _kind(config, {"kind": "full", "theta": 10000.0}, window=7, **shared),
        "full": _kind(config, {"kind": "full", "theta": 1e6, "scaling": linear}, **shared),
    }
    recipe = _recipe("gemma3_text", config, kinds, export, **_gemma_model(softcap=None))
    return Pair(recipe, small_model(Gemma3ForCausalLM, config), SANDWICH_NAMES)


def gemma4(
    per_layer: bool = True,
    sharing: bool = True,
    k_eq_v: bool = True,
    experts: bool = True,
    seed: int = 0,
    **changes: Any,
) -> Pair:
    """Gemma 4, each of its mechanisms on or off: proportional rotary and wider heads on full layers, norms of q, k and
    v, a scalar for each layer, and per-layer embeddings, shared caches with a doubled MLP, K = V, experts."""
    from transformers import Gemma4ForCausalLM, Gemma4TextConfig

    types = ["sliding", "full", "sliding", "full", "sliding", "full"][: 6 if sharing else 4]
    own = {
        "num_hidden_layers": len(types),
        "hidden_activation": "gelu_pytorch_tanh",
        "sliding_window": 7,
        "tie_word_embeddings": True,
        "layer_types": [f"{name}_attention" for name in types],
        "global_head_dim": 36,
        "num_global_key_value_heads": 3,
        "attention_k_eq_v": k_eq_v,
        "num_kv_shared_layers": 2 if sharing else 0,
        "use_double_wide_mlp": True,
        "hidden_size_per_layer_input": 12 if per_layer else 0,
        "vocab_size_per_layer_input": VOCAB if per_layer else 0,
        "final_logit_softcapping": 7.0,
        "enable_moe_block": experts,
        "num_experts": 7 if experts else None,
        "top_k_experts": 3 if experts else None,
        "moe_intermediate_size": 28 if experts else None,
        "rope_parameters": {
            "sliding_attention": rope_parameters(10000.0),
            "full_attention": {**rope_parameters(1e6), "rope_type": "proportional", "partial_rotary_factor": 0.25},
        },
    }
    config, export = _config(Gemma4TextConfig, changes, own)
    shared: dict[str, Any] = {"scale": 1.0, "qk_norm": {"over": "head"}, "v_norm": True}
    local, proportional = {"kind": "full", "theta": 10000.0}, {"kind": "proportional", "factor": 0.25, "theta": 1e6}
    wide = {"head_dim": 36, "num_kv_heads": 3 if k_eq_v else KV_HEADS, "k_eq_v": k_eq_v}
    kinds = {
        "sliding": _kind(config, local, window=config.sliding_window, activation="gelu_tanh", **shared),
        "full": _kind(config, proportional, activation="gelu_tanh", **{**shared, **wide}),
    }
    if experts:
        mixture = {"num_experts": 7, "intermediate_size": 28, "activation": "gelu_tanh"}
        for kind in kinds.values():
            kind["experts"] = {**mixture, "router": {"kind": "softmax", "top": 3}}
    if sharing:
        types[-2:] = ["sliding_shared", "full_shared"]
        for name in list(kinds):
            kind = copy.deepcopy(kinds[name])
            kind["attention"]["shares_kv_with"] = name
            kind["mlp"]["intermediate_size"] *= 2
            kinds[f"{name}_shared"] = kind
    table = {"per_layer": {"size": 12, "vocab_size": config.vocab_size_per_layer_input}} if per_layer else {}
    model = _gemma_model(softcap=7.0)
    model["norm"]["weight"] = "w"
    model["embedding"] |= table
    recipe = _recipe("gemma4_text", config, kinds, export, **model, layer_scalar=True, layers=types)
    made = small_model(Gemma4ForCausalLM, config, seed)
    for index, layer in enumerate(made.model.layers):
        layer.layer_scalar.fill_(0.7 + 0.1 * index)
    return Pair(recipe, made, GEMMA4_NAMES)


FAMILIES: dict[str, Callable[..., Pair]] = {
    "llama": llama,
    "llama3_scaled": llama3_scaled,
    "llama_linear": llama_linear,
    "llama_biased": llama_biased,
    "llama_tied": llama_tied,
    "qwen2": qwen2,
    "qwen3": qwen3,
    "mistral": mistral,
    "gemma2": gemma2,
    "gemma3": gemma3,
    "gemma4": gemma4,
}


def rope_parameters(theta: float, scaling: dict[str, Any] | None = None) -> dict[str, Any]:
    """Transformers' words for a theta and a recipe's scaling."""
    words = {"kind": "rope_type", "original_context": "original_max_position_embeddings"}
    scaled = {words.get(key, key): value for key, value in (scaling or {"kind": "default"}).items()}
    return {"rope_theta": theta, **scaled}


def _config(config_class: Any, changes: dict[str, Any], own: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Transformers' config (its defaults, then ours, the family's and the caller's) and the recipe's export block."""
    export = {"context": changes.pop("context", CONTEXT), "functions": changes.pop("functions", FUNCTIONS)}
    sizes = {
        "vocab_size": VOCAB,
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 256,
        "tie_word_embeddings": False,
        "pad_token_id": None,
        "attn_implementation": "eager",
    }
    return config_class(**{**sizes, **own, **changes}), export


def _kind(
    config: Any,
    rotary: dict[str, Any],
    window: int | None = None,
    activation: str = "silu",
    mlp_bias: bool = False,
    **attention: Any,
) -> dict[str, Any]:
    # of the first layer: where layers differ, the caller says in what
    first = config.per_layer_config[0] if hasattr(config, "per_layer_config") else config
    sizes = {
        "num_heads": config.num_attention_heads,
        "num_kv_heads": first.num_key_value_heads,
        "head_dim": first.head_dim,
    }
    form = {"kind": "full"} if window is None else {"kind": "sliding", "window": window}
    mlp = {"kind": "gated", "activation": activation, "intermediate_size": config.intermediate_size, "bias": mlp_bias}
    return {"attention": {**form, **sizes, **attention}, "rotary": rotary, "mlp": mlp}


def _gemma_model(softcap: float | None) -> dict[str, Any]:
    return {
        "embedding": {"scale": "sqrt_hidden_size"},
        "norm": {"kind": "rms", "eps": 1e-5, "weight": "1+w"},
        "placement": "sandwich",
        "head": {"tied": True, "softcap": softcap},
    }


def _recipe(family: str, config: Any, kinds: dict[str, dict[str, Any]], export: dict[str, Any], **model: Any) -> Recipe:
    """The recipe of `config`, its layers of the kinds that the config's layer types name, else all of the only one."""
    types = getattr(config, "layer_types", None) if len(kinds) > 1 else None
    layers = [name.removesuffix("_attention") for name in types] if types else [*kinds][:1] * config.num_hidden_layers
    return Recipe.model_validate(
        {
            "recipe": 1,
            "name": f"small-{family}",
            "reference": {"model_type": family},
            "model": {
                "vocab_size": config.vocab_size,
                "hidden_size": config.hidden_size,
                "norm": {"kind": "rms", "eps": config.rms_norm_eps},
                "head": {"tied": config.tie_word_embeddings},
                "kinds": kinds,
                "layers": layers,
                **model,
            },
            "weights": {"names": family.removesuffix("_text")},
            "export": export,
        }
    )
