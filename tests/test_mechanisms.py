"""Each mechanism of a family, removed or exchanged, changes the logits: the families' tests would see it.

`test_families` holds every family against transformers. Here the same weights run through the same recipe with one
mechanism less, and must fall far below the floor of that comparison.
"""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from family_configs import all_configs, decoders
from figures import psnr
from pydantic import ValidationError

from coreai_recipes.decoder.filling import bind_weights, fill_from
from coreai_recipes.decoder.model import Decoder, build_decoder
from coreai_recipes.recipe.importing.assembling import recipe_from_config
from coreai_recipes.recipe.importing.paths import get_path, set_path
from coreai_recipes.recipe.schema import Recipe
from coreai_recipes.verification.random_checkpoint import RandomCheckpoint
from coreai_recipes.verification.reference import Reference

CONFIGS = all_configs()
FLOOR = 100.0  # of stage torch
NONE = {"kind": "none"}
# config, path (of the model, or of every kind), value
MUTANTS: dict[str, tuple[str, str, Any]] = {
    "gelu for gelu_tanh": ("phi-plain", "mlp.activation", "gelu"),
    "gelu_tanh for gelu": ("gpt_neox-plain", "mlp.activation", "gelu_tanh"),
    "relu for relu2": ("arcee-plain", "mlp.activation", "relu"),
    "silu for relu": ("opt-plain", "mlp.activation", "silu"),
    "relu2 for xielu": ("apertus-plain", "mlp.activation", "relu2"),
    "one norm for two": ("gpt_neox-plain", "model.placement", "parallel"),
    "one after the other, not side by side": ("gpt_neox-plain", "model.placement", "pre"),
    "side by side, not one after the other": ("gpt_neox-sequential", "model.placement", "parallel_two_norms"),
    "the norm of the sum, not of the block": ("olmo2-plain", "model.placement", "add"),
    "the norm of the block, not of the sum": ("opt-350m", "model.placement", "post"),
    "a norm at the end that is not there": ("olmo2-plain", "model.head.norm", "none"),
    "q and k norms over heads, not the width": ("olmo2-plain", "attention.qk_norm.over", "each_head"),
    "no norms of each head's own": ("cohere-normed", "attention.qk_norm", None),
    "no bias of what experts give": ("jetmoe-plain", "mlp.output_bias", False),
    "no bias of what experts of heads give": ("jetmoe-plain", "attention.bias", "none"),
    "weights of heads that do not sum to one": ("jetmoe-plain", "attention.router.renorm", False),
    "no factor of the logits": ("cohere-unusual", "model.head.scale", 1.0),
    "no residual multiplier": ("granite-unusual", "model.residual_multiplier", 1.0),
    "no clip of q, k and v": ("olmo-unusual", "attention.clip", None),
    "no clip in MPT": ("mpt-unusual", "attention.clip", None),
    "no learned positions": ("gpt2-plain", "model.embedding.positions", None),
    "positions one row off": ("opt-plain", "model.embedding.positions.offset", 1),
    "no alibi": ("bloom-plain", "attention.alibi", None),
    "slopes that end elsewhere": ("bloom-plain", "attention.alibi.max", 7.0),
    "alibi that is not scaled": ("falcon-rw", "attention.alibi.scaled", False),
    "alibi that is not rounded": ("falcon-rw", "attention.alibi.rounding", "none"),
    "no norm of the embedding": ("bloom-plain", "model.embedding.norm", None),
    "no bias of the logits": ("phi-plain", "model.head.bias", False),
    "no biases of the MLP": ("starcoder2-plain", "mlp.bias", False),
    "no biases of attention": ("persimmon-plain", "attention.bias", "none"),
    "RMS for LayerNorm": ("nemotron-plain", "model.norm.kind", "rms"),
    "a rotary where there is none": ("cohere2-plain", "rotary", {"kind": "full", "theta": 10000.0}),
    "halves of the head paired": ("cohere-plain", "rotary.pairing", "half"),
}


def mutate(recipe: Recipe, path: str, value: Any) -> Recipe:
    data = recipe.model_dump(exclude_none=True)
    if path == "model.norm.kind":
        data["model"]["norm"].pop("bias")
    if path.startswith("model."):
        set_path(data, path, value)
    else:
        for kind in data["model"]["kinds"].values():
            if path != "rotary" or kind["rotary"] == NONE:
                set_path(kind, path, value)
    return Recipe.model_validate(data)


def filled(recipe: Recipe, checkpoint: RandomCheckpoint) -> Decoder:
    decoder = build_decoder(recipe)
    fill_from(decoder, bind_weights(decoder, checkpoint))
    return decoder


def give_weights(wrong: Decoder, right: Decoder) -> None:
    """Fill a mutant with the weights that it has in common with the decoder it was made from."""
    given = dict(right.named_parameters())
    for parameter_name, parameter in wrong.named_parameters():
        # what only the mutant has, a norm or a shape of its own, is neutral
        neutral = (
            torch.ones(parameter.shape) if parameter_name.endswith("norm.weight") else torch.zeros(parameter.shape)
        )
        theirs = given.get(parameter_name)
        fits = theirs is not None and theirs.numel() == parameter.numel()
        owner, _, leaf = parameter_name.rpartition(".")
        tensor = theirs.reshape(parameter.shape) if fits else neutral
        setattr(wrong.get_submodule(owner), leaf, torch.nn.Parameter(tensor, requires_grad=False))


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_mechanism_that_is_missing_is_seen(mutant: str) -> None:
    name, path, value = MUTANTS[mutant]
    recipe = recipe_from_config(CONFIGS[name], "small").recipe
    checkpoint = RandomCheckpoint(recipe)
    right, wrong = filled(recipe, checkpoint), build_decoder(mutate(recipe, path, value))
    give_weights(wrong, right)
    ids = torch.randint(0, recipe.model.vocab_size, (1, 90), generator=torch.Generator().manual_seed(1))
    assert psnr(right(ids), wrong(ids)) < FLOOR - 10


def _other(value: str, *pair: str) -> str:
    return pair[1] if value == pair[0] else pair[0]


# What any family may have, with the mechanism removed or exchanged; None where a value has no mutant.
SWAPS: dict[str, Callable[[Any], Any]] = {
    "attention.scale": lambda scale: 0.8 * scale,
    "attention.softcap": lambda _: None,
    "attention.window": lambda window: window + 3,
    "attention.sinks": lambda _: False,
    "attention.bias": lambda _: "none",
    "attention.qk_norm": lambda _: None,
    "attention.qk_norm.after_rotary": lambda after: not after,
    "attention.v_norm": lambda _: False,
    "attention.clip": lambda _: None,
    "attention.temperature": lambda _: None,
    "attention.alibi": lambda _: None,
    "attention.output_gate": lambda _: None,
    "attention.out_norm": lambda _: None,
    "attention.value_scale": lambda scale: 0.8 * scale,
    "attention.value_dim": lambda dim: dim - 2,
    "attention.negative": lambda negative: not negative,
    "attention.gate": lambda gate: _other(gate, "silu", "sigmoid"),
    "attention.decay": lambda decay: _other(decay, "head", "channel"),
    "attention.activation": lambda activation: _other(activation, "silu", "relu"),
    "attention_residual.stream": lambda factor: factor if factor == 1 else 1.2 * factor,
    "attention_residual.block": lambda factor: factor if factor == 1 else 1.2 * factor,
    "mlp_residual.stream": lambda factor: factor if factor == 1 else 1.2 * factor,
    "mlp_residual.block": lambda factor: factor if factor == 1 else 1.2 * factor,
    "attention.chunk": lambda chunk: chunk + 3,
    "attention.temperature.shift": lambda shift: 1 - shift,
    "attention.output_gate.activation": lambda activation: _other(activation, "sigmoid", "softplus"),
    "mlp.router.softcap": lambda _: None,
    "mlp.router.weighs": lambda weighs: _other(weighs, "output", "input"),
    "model.embedding.positions.sines": lambda sines: _other(sines, "open", "closed"),
    "model.head.transform": lambda _: None,
    "state_space.norm": lambda norm: _other(norm, "behind_gate", "before_gate"),
    "rotary.backwards": lambda backwards: not backwards,
    "rotary.theta": lambda theta: 1.5 * theta,
    "rotary.pairing": lambda pairing: _other(pairing, "half", "interleaved"),
    "rotary.scaling": lambda _: None,
    "rotary.factor": lambda factor: 1.0 if factor < 0.8 else 0.5,
    "mlp.activation": lambda activation: _other(activation, "silu", "relu"),
    "mlp.bias": lambda _: False,
    "mlp.sparsity": lambda _: None,
    "mlp.clamp.limit": lambda limit: limit / 20,
    "mlp.clamp.alpha": lambda alpha: alpha / 2,
    "mlp.router.score": lambda score: _other(score, "softmax", "sigmoid"),
    "mlp.router.top": lambda top: top - 1,
    "mlp.router.renorm": lambda renorm: not renorm,
    "mlp.router.scale": lambda scale: 1.2 * scale,
    "mlp.router.bias": lambda _: "none",
    "mlp.inner_norm": lambda _: None,
    "mlp.shared.scale": lambda scale: 0.8 * scale,
    "placement": lambda _: "pre",
    "mlp.router.jitter": lambda jitter: jitter / 2,
    "mlp.router.top_groups": lambda groups: groups + 1,
    "experts.router.top": lambda top: top - 1,
    "model.placement": lambda placement: _other(placement, "pre", "parallel"),
    "model.residual_multiplier": lambda factor: 0.8 * factor,
    "model.embedding.scale": lambda _: 1.3,
    "model.embedding.norm": lambda _: None,
    "model.head.scale": lambda scale: 0.8 * scale,
    "model.head.softcap": lambda _: None,
    "model.head.bias": lambda _: False,
    "model.norm.weight": lambda weight: "none" if weight == "none" else _other(weight, "w", "1+w"),
    "model.norm.kind": lambda kind: _other(kind, "rms", "layer"),
    "model.norm.eps": lambda eps: 1000 * eps,
    "model.altup.active_idx": lambda index: index - 1 if index else None,
    "model.laurel_rank": lambda _: None,
    "model.layer_scalar": lambda _: False,
}


def swaps_of(recipe: Recipe) -> dict[str, Recipe]:
    """Every mutant of SWAPS that the recipe's own values and the schema admit, by its path."""
    found = {}
    data = recipe.model_dump(exclude_none=True)
    for path, swap in SWAPS.items():
        changed = copy.deepcopy(data)
        places = [changed] if path.startswith("model.") else list(changed["model"]["kinds"].values())
        given = [(place, get_path(place, path)) for place in places]
        for place, value in given:
            if value is not None:
                set_path(place, path, swap(value))
        if path == "model.norm.kind":
            changed["model"]["norm"].pop("bias", None)
        if changed == data:
            continue
        try:
            found[path] = Recipe.model_validate(changed)
        except ValidationError:  # this family has the mechanism in a form that has no other
            continue
    return found


# The clamped gate of gpt-oss is an activation of its own, and the config's word beside it is not read. A norm divides
# the factor of a token out that stands before it: that of the embedding; in FlexOlmo, whose norms are of what a block
# gives, that of the experts; where a norm follows attention, that of the values. A norm without weights is the same
# before and behind a rotary. relu of a multiple is that multiple of relu: so experts without a gate may weigh either.
UNSEEN = {
    ("gpt_oss", "mlp.activation"),
    ("bloom", "model.embedding.scale"),
    ("nanochat", "model.embedding.scale"),
    ("nanochat", "attention.qk_norm.after_rotary"),
    ("llama4_text", "attention.qk_norm.after_rotary"),
    ("flex_olmo", "mlp.router.scale"),
    ("bitnet", "attention.value_scale"),
    ("glm4", "attention.value_scale"),
    ("kolibri1", "attention.value_scale"),
    ("flex_olmo", "mlp.router.renorm"),
    ("nemotron_h", "mlp.router.weighs"),
}


@pytest.mark.parametrize("name", decoders())
def test_every_swap_of_what_a_family_has_is_seen(name: str) -> None:
    recipe = recipe_from_config(CONFIGS[f"{name}-unusual"], "small").recipe
    checkpoint = RandomCheckpoint(recipe)
    right = filled(recipe, checkpoint)
    ids = torch.randint(0, recipe.model.vocab_size, (1, 90), generator=torch.Generator().manual_seed(1))
    expected, survivors = right(ids), set()
    for path, mutant in swaps_of(recipe).items():
        if path in ("model.norm.weight", "model.embedding.positions.sines"):  # formed when weights are read
            wrong = filled(mutant, checkpoint)
        else:
            wrong = build_decoder(mutant)
            give_weights(wrong, right)
        if not psnr(expected, wrong(ids)) < FLOOR - 10:
            survivors.add((name, path))
    assert survivors == {each for each in UNSEEN if each[0] == name}


def test_every_swap_is_one_of_some_family_and_they_are_many() -> None:
    swaps = [
        path for name in decoders() for path in swaps_of(recipe_from_config(CONFIGS[f"{name}-unusual"], "small").recipe)
    ]
    assert set(swaps) == SWAPS.keys()
    assert len(swaps) > 700


@pytest.mark.parametrize("name", ["deepseek_v32", "glm_moe_dsa"])
def test_an_indexer_that_leaves_keys_out_is_seen(name: str) -> None:
    """The reference used to see all keys whatever index_topk says: a recipe of more positions would have passed."""
    recipe = recipe_from_config(CONFIGS[f"{name}-unusual"], "small").recipe
    ids = list(range(3, 93))

    def reference(index_topk: int) -> torch.Tensor:
        checkpoint = RandomCheckpoint(recipe)
        checkpoint.config["index_topk"] = index_topk
        return Reference(recipe, checkpoint).run(ids)

    ours = filled(recipe, RandomCheckpoint(recipe))(torch.tensor([ids]))[0]
    assert psnr(reference(len(ids)), ours) > FLOOR
    assert psnr(reference(len(ids) - 10), ours) < FLOOR - 10
