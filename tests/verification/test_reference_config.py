"""transformers' config of the reference, where transformers itself reads a file's fields wrongly."""

from transformers import AutoConfig

from coreai_recipes.verification.reference_config import carry_theta


def test_the_theta_of_dbrx_stands_in_its_attention_where_rope_parameters_say_none() -> None:
    settings = {"model_type": "dbrx", "attn_config": {"rope_theta": 500000.0, "kv_n_heads": 8, "clip_qkv": 8}}
    for given, theta in (({}, 500000.0), ({"rope_parameters": {"rope_type": "default", "rope_theta": 7.0}}, 7.0)):
        said = {**settings, **given}
        config = AutoConfig.for_model(**said)
        carry_theta(config, said)
        assert config.rope_parameters["rope_theta"] == theta
