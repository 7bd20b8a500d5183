"""Mixers of Mamba-2 against transformers': whole, in padded calls, on repeated tokens; mutants."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from figures import psnr
from mixers import CALLS, HIDDEN, S, begin_anew, by_calls, let_padding_write, tokens, whole
from torch import Tensor

from coreai_recipes.primitives import mamba2 as module
from coreai_recipes.primitives.attention import build_attention
from coreai_recipes.primitives.mamba2 import Mamba2
from coreai_recipes.recipe.schema import LayerKind, RMSNorm

SIZES = {"num_key_heads": 2, "num_value_heads": 6, "key_dim": 12, "value_dim": 16, "taps": 3, "bias": True}
ROWS = {"gate": 96, "mixed": 144, "step": 6}
THEIRS = {"conv": "conv1d", "last": "out_proj"}


OF_FALCON = {
    "mamba_n_heads": 6, "mamba_d_ssm": 96, "mamba_n_groups": 2, "mamba_d_state": 12, "mamba_d_conv": 3,
    "mamba_proj_bias": True, "projectors_bias": True, "mamba_chunk_size": 32, "rms_norm_eps": 2e-5,
}  # fmt: skip
# transformers' mixer, its config, and what of ours is not Bamba's
MIXERS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "bamba": (
        "BambaMixer",
        {"mamba_n_heads": 6, "mamba_n_groups": 2, "mamba_d_state": 12, "mamba_d_conv": 3, "mamba_proj_bias": True,
         "mamba_chunk_size": 32, "rms_norm_eps": 2e-5},
        {},
    ),
    "nemotron_h": (
        "NemotronHMamba2Mixer",
        {"mamba_num_heads": 6, "mamba_head_dim": 16, "n_groups": 2, "ssm_state_size": 12, "conv_kernel": 3,
         "use_bias": True, "chunk_size": 32, "layer_norm_epsilon": 2e-5, "time_step_min": 0.3,
         "layers_block_type": ["linear_attention"]},
        {"step_min": 0.3},
    ),
    "falcon_h1": ("FalconH1Mixer", OF_FALCON, {"norm": "none"}),
    "falcon_h1-norm-before-gate": ("FalconH1Mixer", {**OF_FALCON, "mamba_rms_norm": True}, {"norm": "before_gate"}),
}  # fmt: skip


def kind(**changes: Any) -> LayerKind:
    return LayerKind.model_validate({
        "attention": {"kind": "mamba2", **SIZES, **changes},
        "rotary": {"kind": "none"},
        "mlp": {"kind": "gated", "activation": "silu", "intermediate_size": 88},
    })  # fmt: skip


def mixer(name: str) -> Any:
    """transformers' mixer of MIXERS, its weights as they begin."""
    from importlib import import_module

    from transformers import CONFIG_MAPPING

    module_class, sizes, _ = MIXERS[name]
    model_type = name.partition("-")[0]
    config = CONFIG_MAPPING[model_type](hidden_size=HIDDEN, num_hidden_layers=1, **sizes)
    modeling = import_module(f"transformers.models.{model_type}.modeling_{model_type}")
    theirs = getattr(modeling, module_class)(config, 0).eval()
    if model_type == "falcon_h1":  # which its model leaves there
        theirs.mup_vector = modeling.compute_mup_vector(config)
    return theirs


def pair(name: str = "bamba") -> tuple[Any, Mamba2]:
    """transformers' layer with random weights, half of its heads slow to forget, and ours with the same."""
    theirs = mixer(name)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for own, parameter in theirs.named_parameters():
            random = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(random * 1.5 * parameter.shape[-1] ** -0.5 if parameter.dim() > 1 else random * 0.5)
            if own == "dt_bias":
                parameter[::2] -= 5.5
    ours = build_attention(kind(**MIXERS[name][2]), HIDDEN, RMSNorm(kind="rms", eps=2e-5))
    assert isinstance(ours, Mamba2)
    stored = theirs.state_dict()
    tensors = {
        f"{part}.{leaf}": rows
        for leaf in ("weight", "bias")
        for part, rows in zip(ROWS, stored[f"in_proj.{leaf}"].split([*ROWS.values()]), strict=True)
    }
    for part, tensor in THEIRS.items():
        tensors |= {f"{part}.{leaf}": stored[f"{tensor}.{leaf}"] for leaf in ("weight", "bias")}
    tensors |= {"step_offset": stored["dt_bias"], "rate": -stored["A_log"].exp(), "skip": stored["D"]}
    if "norm.weight" in stored:
        tensors["norm_scale"] = stored["norm.weight"]
    with torch.no_grad():
        for own, tensor in tensors.items():
            parameter = ours.get_parameter(own)
            parameter.copy_(tensor.view(parameter.shape))
    assert tensors.keys() == dict(ours.named_parameters()).keys()
    return theirs, ours


def both() -> tuple[Tensor, Tensor]:
    theirs, ours = pair()
    with torch.no_grad():
        return theirs(tokens()), whole(ours, tokens())


@pytest.mark.parametrize("distinct", [S, 1, 2], ids=["random", "one token repeated", "two in turn"])
@pytest.mark.parametrize("name", MIXERS)
def test_a_mixer_and_its_padded_calls_and_single_tokens_are_transformers_mixer(name: str, distinct: int) -> None:
    theirs, ours = pair(name)
    x = tokens(distinct)
    with torch.no_grad():
        expected = theirs(x)
    assert psnr(expected, whole(ours, x)) >= 100
    assert psnr(expected, by_calls(ours, x, CALLS)) >= 100


def gate_behind_the_norm(ours: Mamba2, patch: pytest.MonkeyPatch) -> None:
    right, norm, gates = F.silu, ours.out_norm, list[Tensor]()

    def note(gate: Tensor) -> Tensor:
        gates.append(right(gate))
        return torch.ones_like(gate)

    patch.setattr(module.F, "silu", note)
    patch.setattr(type(norm), "forward", lambda norm, y: norm.compute(y) * gates[-1].view(y.shape))


def groups_in_turn(ours: Mamba2, patch: pytest.MonkeyPatch) -> None:
    ours.mixed.weight[96:] = ours.mixed.weight[96:].view(2, 2, 12, HIDDEN, 1, 1).flip(1).reshape(48, HIDDEN, 1, 1)


def keys_for_queries(ours: Mamba2, patch: pytest.MonkeyPatch) -> None:
    ours.mixed.weight[96:] = ours.mixed.weight[96:].roll(24, 0)


def no_skip(ours: Mamba2, patch: pytest.MonkeyPatch) -> None:
    ours.skip.zero_()


def no_offset(ours: Mamba2, patch: pytest.MonkeyPatch) -> None:
    ours.step_offset.zero_()


def oldest_tap_missing(ours: Mamba2, patch: pytest.MonkeyPatch) -> None:
    ours.conv.weight[:, :, 0] = 0


@pytest.mark.parametrize(
    "mutate", [gate_behind_the_norm, groups_in_turn, keys_for_queries, no_skip, no_offset, oldest_tap_missing]
)
def test_a_mechanism_that_is_wrong_is_seen(
    mutate: Callable[[Mamba2, pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs, ours = pair()
    with torch.no_grad():
        expected = theirs(tokens())
        mutate(ours, monkeypatch)
        assert psnr(expected, whole(ours, tokens())) < 60


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("nemotron_h", {"step_min": None}),
        ("falcon_h1-norm-before-gate", {"norm": "behind_gate"}),
        ("falcon_h1-norm-before-gate", {"norm": "none"}),
    ],
)
def test_a_mixer_that_is_told_otherwise_is_seen(name: str, wrong: dict[str, Any]) -> None:
    theirs, ours = pair(name)
    ours.spec = ours.spec.model_copy(update=wrong)
    if wrong.get("norm") == "none":
        ours.out_norm = None
    with torch.no_grad():
        assert psnr(theirs(tokens()), whole(ours, tokens())) < 60


def test_padding_that_writes_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs, ours = pair()
    with torch.no_grad():
        expected = theirs(tokens())
    let_padding_write(monkeypatch)
    assert psnr(expected, by_calls(ours, tokens(), CALLS)) < 60


def test_a_recurrence_that_begins_anew_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs, ours = pair()
    with torch.no_grad():
        expected = theirs(tokens())
    begin_anew(monkeypatch)
    assert psnr(expected, by_calls(ours, tokens(), CALLS)) < 60
