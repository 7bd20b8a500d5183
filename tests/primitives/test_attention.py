"""Attention against transformers' own modules, layer by layer, on what their models give them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from families import FAMILIES, Pair, llama, mistral
from figures import psnr
from test_chunked import both_chunks
from test_chunked import small as small_llama4
from test_differential import layers as differential_layers
from test_gated_delta import both as both_deltas
from test_latent import CASES as LATENT
from test_latent import case as latent_case
from test_lightning import both as both_lightnings
from test_mamba1 import NORMS
from test_mamba1 import both as both_mambas1
from test_mamba2 import both as both_mambas
from test_mixture_attention import layers as layers_of_mixtures
from test_rg_lru import both as both_units
from test_short_conv import both as both_convolutions
from torch import Tensor

from coreai_recipes.primitives.attention import build_attention
from coreai_recipes.primitives.cache import NoCache
from coreai_recipes.primitives.layer_inputs import LayerInputs
from coreai_recipes.recipe.schema import LayerKind, Recipe, RMSNorm

S = 30  # more than four windows
Compare = tuple[Tensor, Tensor]


def their_attention(pair: Pair) -> tuple[list[Tensor], list[Tensor]]:
    """What goes into and comes out of each layer's attention of the transformers model, (1, S, C)."""
    entered: list[Tensor] = []
    left: list[Tensor] = []

    def keep(_module: Any, _args: Any, given: dict[str, Any], output: tuple[Tensor, ...]) -> None:
        entered.append(given["hidden_states"])
        left.append(output[0])

    hooks = [layer.self_attn.register_forward_hook(keep, with_kwargs=True) for layer in pair.model.model.layers]
    generator = torch.Generator().manual_seed(4)
    pair.model(torch.randint(0, pair.recipe.model.vocab_size, (1, S), generator=generator))
    for hook in hooks:
        hook.remove()
    return entered, left


def our_attention(pair: Pair, entered: list[Tensor], recipe: Recipe | None = None) -> list[Tensor]:
    """Ours, of `pair` (or of another recipe with its weights), on the same hidden states."""
    decoder = pair.decoder(recipe)
    zero, all_real = torch.zeros(1, dtype=torch.int32), torch.full((1,), S, dtype=torch.int32)
    call = decoder.front.call(S, cached=False)
    _, inputs, _ = decoder.front(call, torch.zeros(1, S, dtype=torch.int32), zero, all_real)
    left = []
    for layer, x in zip(decoder.layers, entered, strict=True):
        y = layer.attention(x.transpose(1, 2).unsqueeze(2), inputs[layer.kind], NoCache())
        left.append(y.squeeze(2).transpose(1, 2))
    return left


def of_kind(kind: str, make: Callable[[], Pair]) -> Callable[[], list[Compare]]:
    """Their and our attention in each layer of a kind."""

    def compare() -> list[Compare]:
        pair = make()
        entered, theirs = their_attention(pair)
        ours = our_attention(pair, entered)
        kinds = [pair.recipe.model.kinds[name].attention.kind for name in pair.recipe.model.layer_kinds]
        return [both for of, *both in zip(kinds, theirs, ours, strict=True) if of == kind]

    return compare


def an_mlp_alone() -> Compare:
    """The stream behind transformers' layer of an MLP alone, and behind what our attention adds and that MLP."""
    from transformers import NemotronHConfig
    from transformers.models.nemotron_h.modeling_nemotron_h import NemotronHBlock

    config = NemotronHConfig(hidden_size=32, intermediate_size=40, layers_block_type=["mlp"])
    block = NemotronHBlock(config, 0).eval()
    kind = {
        "attention": {"kind": "none"},
        "rotary": {"kind": "none"},
        "mlp": {"kind": "plain", "activation": "relu2", "intermediate_size": 40},
    }
    layer = build_attention(LayerKind.model_validate(kind), 32, RMSNorm(kind="rms", eps=1e-5))
    x = torch.randn(1, 9, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        added = layer(x.transpose(1, 2).unsqueeze(2), LayerInputs(None, x, x), NoCache())
        y = x + added.squeeze(2).transpose(1, 2)
        return block(x), y + block.mixer(block.norm(y))


PARITY: dict[str, dict[str, Callable[[], list[Compare]]]] = {
    "latent": {name: lambda name=name: latent_case(name)() for name in LATENT},  # test_latent.py has more
    "short_conv": {  # test_short_conv.py has more
        "lfm2": lambda: [both_convolutions(3, False)],
        "lfm2_biased": lambda: [both_convolutions(3, True)],
        "seven_taps": lambda: [both_convolutions(7, False)],
    },
    "gated_delta": {"qwen3_5": lambda: [both_deltas()]},  # test_gated_delta.py has more
    "mamba1": {name: lambda name=name: [both_mambas1(name)] for name in NORMS},  # test_mamba1.py has more
    "lightning": {"minimax": lambda: [both_lightnings()]},  # test_lightning.py has more
    "rg_lru": {"recurrent_gemma": lambda: [both_units()]},  # test_rg_lru.py has more
    "mamba2": {"bamba": lambda: [both_mambas()]},  # test_mamba2.py has more
    "differential": {"diffllama": differential_layers},  # test_differential.py has more
    "mixture": {"jetmoe": layers_of_mixtures},  # test_mixture_attention.py has more
    "none": {"nemotron_h": lambda: [an_mlp_alone()]},
    "chunked": {"llama4": lambda: both_chunks(small_llama4())},  # test_chunked.py has more
    "full": {
        "llama": of_kind("full", FAMILIES["llama"]),
        "llama_biased_everywhere": of_kind("full", FAMILIES["llama_biased"]),
        "llama_scaled": of_kind("full", FAMILIES["llama3_scaled"]),
        "one_kv_head": of_kind("full", lambda: llama(num_key_value_heads=1)),
        "a_kv_head_for_each_head": of_kind("full", lambda: llama(num_key_value_heads=6)),
        "head_dim_160": of_kind("full", lambda: llama(num_attention_heads=2, num_key_value_heads=1, head_dim=160)),
        "qwen2_biased_but_o": of_kind("full", FAMILIES["qwen2"]),
        "qwen3_normed": of_kind("full", FAMILIES["qwen3"]),
        "gemma2_capped": of_kind("full", FAMILIES["gemma2"]),
        "gemma3_normed_1_plus_w": of_kind("full", FAMILIES["gemma3"]),
    },
    "sliding": {
        "mistral": of_kind("sliding", FAMILIES["mistral"]),
        "a_window_of_one": of_kind("sliding", lambda: mistral(sliding_window=1)),
        "a_window_that_never_slides": of_kind("sliding", lambda: mistral(sliding_window=S)),
        "qwen2": of_kind("sliding", FAMILIES["qwen2"]),
        "gemma2_capped": of_kind("sliding", FAMILIES["gemma2"]),
        "gemma3": of_kind("sliding", FAMILIES["gemma3"]),
    },
}


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, cases in PARITY.items() for name in cases])
def test_attention_equals_its_reference(kind: str, name: str) -> None:
    layers = PARITY[kind][name]()
    assert layers
    for reference, x in layers:
        assert psnr(reference, x) >= 120


def changed(recipe: Recipe, block: str, **changes: Any) -> Recipe:
    """The recipe with every kind's attention or rotary block changed."""
    data = recipe.model_dump()
    for kind in data["model"]["kinds"].values():
        kind[block].update(changes)
    return Recipe.model_validate(data)


# one mechanism of each family, removed or off by one
MUTANTS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "a window that is one longer": ("mistral", "attention", {"window": 8}),
    "a window that is one shorter": ("mistral", "attention", {"window": 6}),
    "no norm of queries and keys": ("qwen3", "attention", {"qk_norm": None}),
    "no softcap": ("gemma2", "attention", {"softcap": None}),
    "another scale": ("gemma2", "attention", {"scale": None}),
    "values normed as well": ("qwen3", "attention", {"v_norm": True}),
    "a bias that is not read": ("llama_biased", "attention", {"bias": "none"}),
    "o's bias that is not read": ("llama_biased", "attention", {"bias": "qkv"}),
    "another theta": ("llama", "rotary", {"theta": 20000.0}),
    "no scaling of frequencies": ("llama3_scaled", "rotary", {"scaling": None}),
    "interleaved pairs": ("llama", "rotary", {"pairing": "interleaved"}),
    "half of the head turned": ("llama", "rotary", {"kind": "partial", "factor": 0.5}),
    "a quarter of the pairs turned": ("llama", "rotary", {"kind": "proportional", "factor": 0.25}),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_mechanism_that_is_missing_is_seen(mutant: str) -> None:
    family, block, changes = MUTANTS[mutant]
    pair = FAMILIES[family]()
    entered, theirs = their_attention(pair)
    ours = our_attention(pair, entered, changed(pair.recipe, block, **changes))
    assert min(psnr(reference, x) for reference, x in zip(theirs, ours, strict=True)) < 60


def test_v_norm_is_gemma_4s() -> None:
    """Without a weight, over each head, with the model's eps."""
    from transformers.models.gemma4.modeling_gemma4 import Gemma4RMSNorm

    pair = FAMILIES["llama"]()
    attention = pair.decoder(changed(pair.recipe, "attention", v_norm=True)).layers[0].attention
    values = torch.randn(2, 20, 1, 9)  # (G, D, 1, S)
    theirs = Gemma4RMSNorm(20, pair.model.config.rms_norm_eps, with_scale=False)(values.squeeze(2).transpose(1, 2))
    assert psnr(theirs, attention.v_norm(values).squeeze(2).transpose(1, 2)) >= 120


def test_a_hook_sees_queries_and_keys_as_they_are_after_the_rotary() -> None:
    """verify looks there: (H, D, 1, S) and (G, D, 1, S), turned but not yet scaled."""
    from transformers.models.llama import modeling_llama

    pair = FAMILIES["llama"]()
    entered, _ = their_attention(pair)
    attention = pair.decoder().layers[1].attention
    seen: dict[str, Tensor] = {}
    for name in ("rotated_query", "rotated_key"):
        getattr(attention, name).register_forward_hook(lambda _m, _i, y, name=name: seen.__setitem__(name, y))
    front = pair.decoder().front
    given = front(
        front.call(S, cached=False),
        torch.zeros(1, S, dtype=torch.int32),
        torch.zeros(1, dtype=torch.int32),
        torch.ones(1, dtype=torch.int32),
    )[1]["full"]
    x = entered[1]
    attention(x.transpose(1, 2).unsqueeze(2), given, NoCache())
    theirs = pair.model.model.layers[1].self_attn
    q = theirs.q_proj(x).view(1, S, 6, 20).transpose(1, 2)
    k = theirs.k_proj(x).view(1, S, 2, 20).transpose(1, 2)
    turned = modeling_llama.apply_rotary_pos_emb(q, k, *pair.model.model.rotary_emb(x, torch.arange(S)[None]))
    for name, reference in zip(("rotated_query", "rotated_key"), turned, strict=True):
        assert psnr(reference[0], seen[name].squeeze(2).transpose(1, 2)) >= 120
