"""What converters do to hybrid models alone: multipliers in weights, value heads in turns, layers that draft."""

from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGMLQuantizationType
from gguf_configs import CONFIGS
from gguf_files import random_model, write_gguf
from transformers import FalconH1Config

from coreai_recipes import build_decoder
from coreai_recipes.checkpoint import open_checkpoint
from coreai_recipes.checkpoint.gguf import GGUFCheckpoint
from coreai_recipes.checkpoint.gguf.sparsity import share_below
from coreai_recipes.decoder.filling import bind_weights, fill_from
from coreai_recipes.errors import CheckpointError
from coreai_recipes.planning.authoring import new_recipe
from coreai_recipes.verification import run_stages

MULTIPLIERS = {
    "embedding_multiplier": 5.6,
    "lm_head_multiplier": 0.04,
    "attention_in_multiplier": 0.9,
    "attention_out_multiplier": 1.1,
    "key_multiplier": 0.3,
    "mlp_multipliers": [0.8, 0.6],
    "ssm_in_multiplier": 1.25,
    "ssm_multipliers": [0.35, 0.25, 0.18, 0.5, 0.36],
    "ssm_out_multiplier": 0.23,
}


def save(folder: Path, case: str, state: dict[str, torch.Tensor] | None = None, **options: Any) -> Path:
    architecture, config = CONFIGS[case]
    state = random_model(config).state_dict() if state is None else state
    return write_gguf(folder / "model.gguf", architecture, config, state, **options)


def test_falcon_h1s_multipliers_are_in_the_weights(tmp_path: Path):
    config = FalconH1Config(**{**CONFIGS["falcon-h1"][1].to_dict(), **MULTIPLIERS})
    model = random_model(config)
    path = write_gguf(tmp_path / "model.gguf", "falcon-h1", config, model.state_dict())
    assert not MULTIPLIERS.keys() & open_checkpoint(path).config.keys()
    decoder = build_decoder(new_recipe(path).recipe)
    fill_from(decoder, bind_weights(decoder, GGUFCheckpoint(path)))
    tokens = torch.arange(80).remainder(96)[None]
    with torch.no_grad():
        ours, theirs = decoder(tokens), model(tokens).logits
    assert 20 * theirs.abs().max().log10() - 10 * (ours - theirs).square().mean().log10() >= 120


def test_a_falcon_h1_whose_head_is_its_table_is_refused(tmp_path: Path):
    config = FalconH1Config(**{**CONFIGS["falcon-h1"][1].to_dict(), "tie_word_embeddings": True})
    path = write_gguf(tmp_path / "model.gguf", "falcon-h1", config, random_model(config).state_dict())
    with pytest.raises(CheckpointError, match=r"has no output.weight: what multiplies its logits is not in the file$"):
        GGUFCheckpoint(path)


def test_a_layer_that_drafts_is_left_out(tmp_path: Path):
    """The converter writes Qwen3.5's behind the others and counts it, unless it is told --no-mtp."""
    state = random_model(CONFIGS["qwen35"][1]).state_dict()
    plain = GGUFCheckpoint(save(tmp_path, "qwen35", state))
    behind = {
        name.replace("layers.1.", "layers.2."): tensor for name, tensor in state.items() if ".layers.1." in name
    } | {"blk.2.nextn.eh_proj.weight": torch.ones(64, 128)}
    extra = {"qwen35.block_count": 3, "qwen35.nextn_predict_layers": 1}
    drafting = GGUFCheckpoint(save(tmp_path, "qwen35", {**state, **behind}, extra=extra))
    assert drafting.config == plain.config
    assert drafting.tensors.keys() == plain.tensors.keys()
    with pytest.raises(CheckpointError, match=r"qwen35.nextn_predict_layers is 3, as many as there are layers"):
        save_and_open(tmp_path, "qwen35", state, extra={**extra, "qwen35.nextn_predict_layers": 3})
    many = {"qwen35.block_count": 2**31 + 2, "qwen35.nextn_predict_layers": 2**31}
    with pytest.raises(CheckpointError, match=r"qwen35.nextn_predict_layers is 2147483648; at most 64 are read"):
        save_and_open(tmp_path, "qwen35", state, extra=many)


def save_and_open(folder: Path, case: str, state: dict[str, torch.Tensor], **options: Any) -> GGUFCheckpoint:
    return GGUFCheckpoint(save(folder, case, state, **options))


def test_an_older_file_of_qwen3_next_has_the_rows_as_transformers_has_them(tmp_path: Path, monkeypatch: Any):
    state = random_model(CONFIGS["qwen3next"][1]).state_dict()
    name = "model.layers.0.linear_attn.in_proj_qkvz.weight"
    monkeypatch.setattr(
        "gguf_hybrids.in_proj_parts", lambda config, name, tensor: [(f"blk.{name.split('.')[2]}.ssm_in.weight", tensor)]
    )
    assert torch.equal(save_and_open(tmp_path, "qwen3next", state).read(name), state[name])


@pytest.mark.parametrize("kind", [GGMLQuantizationType.Q8_0, GGMLQuantizationType.BF16], ids=lambda kind: kind.name)
def test_rows_that_moved_are_read_by_the_range_and_quantised_as_they_are(kind: GGMLQuantizationType, tmp_path: Path):
    """Value heads of Qwen3.5 lie in turns: a range of transformers' rows is in several places of the file."""
    case = "qwen35"
    state = random_model(CONFIGS[case][1]).state_dict()
    checkpoint = save_and_open(
        tmp_path, case, state, type_of=lambda name, t: kind if t.ndim == 2 and t.shape[1] % 32 == 0 else kind.F32
    )
    for tensor in ("in_proj_qkv.weight", "in_proj_z.weight", "in_proj_a.weight", "out_proj.weight", "dt_bias", "A_log"):
        name = f"model.layers.0.linear_attn.{tensor}"
        whole = checkpoint.read(name)
        assert torch.nn.functional.cosine_similarity(whole.float().flatten(), state[name].flatten(), 0) > 0.999
        for rows in (range(1, 5), range(len(whole) - 3, len(whole)), range(3, len(whole) - 1)):
            assert torch.equal(checkpoint.read(name, rows), whole[rows.start : rows.stop]), (name, rows)
    grids = {
        tensor: checkpoint.grid(f"model.layers.0.linear_attn.{tensor}.weight") for tensor in ("in_proj_z", "out_proj")
    }
    assert (grids["in_proj_z"] is not None) == (kind.name == "Q8_0")
    assert grids["out_proj"] is None  # heads of 16 columns, of which two were quantised together


def test_what_makes_keys_and_values_is_read_by_the_range(tmp_path: Path):
    """A head's keys, which are stored transposed, and its values are rows that follow one another."""
    state = random_model(CONFIGS["deepseek2"][1]).state_dict()
    name = "model.layers.1.self_attn.kv_b_proj.weight"
    checkpoint = save_and_open(tmp_path, "deepseek2", state)
    for rows in (range(36), range(5, 6), range(30, 80), range(143, 144)):
        assert torch.equal(checkpoint.read(name, rows), state[name][rows.start : rows.stop]), rows


def test_an_older_file_of_deepseek_has_keys_and_values_in_one_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    state = random_model(CONFIGS["deepseek2"][1]).state_dict()
    new = save_and_open(tmp_path, "deepseek2", state)
    monkeypatch.setattr("gguf_latent.split_heads", lambda config, name, tensor: [(name, tensor)])
    lengths = {"attention.key_length": 24, "attention.value_length": 20, "attention.head_count_kv": 4}
    extra = {f"deepseek2.{key}": value for key, value in lengths.items()}
    left_out = ["deepseek2.attention.key_length_mla", "deepseek2.attention.value_length_mla"]
    old = save_and_open(tmp_path, "deepseek2", state, extra=extra, without=left_out)
    assert old.config == new.config
    name = "model.layers.0.self_attn.kv_b_proj.weight"
    assert torch.equal(old.read(name), state[name])


@pytest.mark.parametrize(
    ("case", "key", "value", "message"),
    [
        ("qwen35", "ssm.time_step_rank", 3, "is 3, of which 2 key heads (ssm.group_count) have no equal share"),
        ("qwen35", "ssm.inner_size", 95, "is 95, which ssm.time_step_rank, 6, does not divide"),
        ("qwen35", "full_attention_interval", 0, "is 0"),
        ("granitehybrid", "rope.scaling.finetuned", True, "is True, which is not supported"),
        ("nemotron_h", "feed_forward_length", [0, 96, 96, 96], "is not 0 in a layer that attends"),
        ("nemotron_h", "feed_forward_length", [0, 96, 0, 80], "differs between layers that have an MLP"),
        ("deepseek2", "attention.key_length_mla", 8, "is 8, of which 8 turn"),
        ("deepseek2", "attention.key_length", 24, "is 24, not 20, as the other keys imply"),
        ("gemma3n", "activation_sparsity_scale", [0.0, 0.0], "is not a list of 4 numbers"),
    ],
)
def test_what_does_not_fit_is_refused_by_key(case: str, key: str, value: Any, message: str, tmp_path: Path):
    with pytest.raises(CheckpointError) as caught:
        save_and_open(tmp_path, case, random_model(CONFIGS[case][1]).state_dict(), extra={f"{case}.{key}": value})
    assert caught.value.problems == (f"{tmp_path / 'model.gguf'}: {case}.{key} {message}",)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.8, 0.9, 0.95, 0.975, 0.99])
def test_a_share_of_gates_comes_back_from_its_deviations(share: float):
    deviations = torch.distributions.normal.Normal(0, 1).icdf(torch.tensor(share))
    assert share_below(deviations.item()) == share


@pytest.mark.parametrize("case", ["qwen35", "granitehybrid", "nemotron_h_moe"])
def test_a_hybrid_file_passes_the_stages(case: str, tmp_path: Path):
    path = save(tmp_path, case)
    report = run_stages(new_recipe(path).recipe, open_checkpoint(path), None, stages=["rotary", "torch"])
    assert report.passed, report.to_json()
