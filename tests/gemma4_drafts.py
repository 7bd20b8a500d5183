"""A small random draft of Gemma 4, by transformers, beside the target that it drafts for."""

import copy
from typing import Any

import torch
from families import HEAD_DIM, HIDDEN, KV_HEADS, Pair
from small_models import small_model

from coreai_recipes.recipe.schema import Recipe


def gemma4_draft(pair: Pair, seed: int = 1, clusters: int | None = None) -> tuple[Recipe, Any]:
    """The recipe of a Gemma 4 with a draft of its own, and transformers' draft, random; with `clusters` its head looks
    into the best 3 of as many clusters of the vocabulary."""
    from transformers import Gemma4AssistantConfig, Gemma4AssistantForCausalLM

    from coreai_recipes.verification.draft_reference import all_layers_may_share

    target = pair.model.config
    full = target.per_layer_config[1]
    text = {
        "model_type": "gemma4_text",
        "vocab_size": pair.recipe.model.vocab_size,
        "hidden_size": 36,
        "intermediate_size": 44,
        "num_hidden_layers": 3,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
        "num_attention_heads": 6,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "global_head_dim": full.head_dim,
        "num_global_key_value_heads": full.num_key_value_heads,
        "attention_k_eq_v": True,
        "rms_norm_eps": 1e-5,
        "sliding_window": target.sliding_window,
        "hidden_size_per_layer_input": 0,
        "vocab_size_per_layer_input": 0,
        "num_kv_shared_layers": 3,
        "rope_parameters": target.rope_parameters,
        "max_position_embeddings": 256,
        "tie_word_embeddings": True,
    }
    ordered = {"use_ordered_embeddings": True, "num_centroids": clusters, "centroid_intermediate_top_k": 3}
    with all_layers_may_share():
        config = Gemma4AssistantConfig(
            text_config=text,
            backbone_hidden_size=HIDDEN,
            attn_implementation="eager",
            **(ordered if clusters else {}),
        )
        draft = small_model(Gemma4AssistantForCausalLM, config, seed)
    for index, layer in enumerate(draft.model.layers):
        layer.layer_scalar.fill_(0.9 + 0.1 * index)
    if clusters:
        generator = torch.Generator().manual_seed(seed)
        draft.masked_embedding.token_ordering.copy_(torch.randperm(text["vocab_size"], generator=generator))
    data = pair.recipe.model_dump()
    kinds = {}
    for name in ("sliding", "full"):
        kind = copy.deepcopy(data["model"]["kinds"][name])
        kind["attention"] |= {"shares_kv_with": name}
        kind |= {"experts": None, "mlp": {**kind["mlp"], "intermediate_size": 44}}
        kinds[name] = kind
    data["draft"] = {
        "reference": {"model_type": "gemma4_assistant"},
        "vocab_size": pair.recipe.model.vocab_size,
        "centroids": {"count": clusters, "top": 3} if clusters else None,
        "hidden_size": 36,
        "norm": {"kind": "rms", "eps": 1e-5},
        "placement": "sandwich",
        "layer_scalar": True,
        "kinds": kinds,
        "layers": ["sliding", "sliding", "full"],
        "weights": {"names": "gemma4_assistant"},
    }
    return Recipe.model_validate(data), draft
