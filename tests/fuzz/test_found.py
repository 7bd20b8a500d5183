"""What the fuzzer has found, kept."""

import json
from pathlib import Path

import entry_points
import pytest

from coreai_recipes.errors import UserError

SIZES = {"vocab_size": 64, "num_hidden_layers": 1, "hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2}


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"model_type": "gpt2", "n_embd": 48, "n_head": 96, "scale_attn_weights": False}, "head_dim: 0 is not above 0"),
        ({"model_type": "granite", **SIZES, "num_attention_heads": 64, "attention_multiplier": 1.0}, "head_dim"),
        ({"model_type": "llama", **SIZES, "rms_norm_eps": 10**400}, "401 digits"),
        ({"model_type": "llama", **SIZES, "rope_theta": 10**400}, "401 digits"),
        ({"model_type": "llama", **SIZES, "rope_scaling": {"rope_type": "linear", "factor": 10**400}}, "401 digits"),
    ],
    ids=["gpt2 heads", "granite heads", "eps", "theta", "factor"],
)
def test_a_config_that_a_fuzzer_wrote_is_refused(config: dict[str, object], said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        entry_points.config(tmp_path, json.dumps(config).encode())
    assert said in str(caught.value)
