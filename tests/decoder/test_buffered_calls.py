"""The decoder's own modules on rows since the last commit, with guesses that are rejected, against whole sequences."""

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from figures import psnr
from small_delta import save_delta, small_delta
from small_models import small_model
from torch import Tensor

from coreai_recipes.decoder.filling import bind_weights
from coreai_recipes.decoder.model import Decoder, build_decoder, fill
from coreai_recipes.primitives.attention import commit_kind
from coreai_recipes.primitives.buffer import Buffer, since_commit
from coreai_recipes.primitives.cache import Cache, NoCache
from coreai_recipes.primitives.carried import Carried
from coreai_recipes.primitives.layer_inputs import LayerInputs
from coreai_recipes.running.buffer import RowBuffer
from coreai_recipes.running.program import SavedProgram

ROWS, PREFILL, SCORE, LENGTH = 12, 8, 4, 60


class Modules:
    """An engine of a decoder's modules, whose functions are those of docs/bundle.md."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder, self.front = decoder, decoder.front

    def function(self, name: str) -> Any:
        return self._commit if name == "commit" else lambda *given: self._call(name, *given)

    def make_state(self) -> dict[str, Tensor]:
        return self.decoder.make_states()

    def _commit(self, inputs: Mapping[str, Tensor], states: Any, watch: Any) -> dict[str, Tensor]:
        left = {}
        for buffer in self.front.row_buffers.values():
            kind = buffer.kind
            specs = [spec for spec in self.front.carried.values() if spec.kind == kind]
            given = {spec.tensor.name: inputs[spec.name] for spec in specs}
            carried = Carried(given, buffer=Buffer(inputs[buffer.name], buffer.parts))
            since = since_commit(ROWS, self.front.tail(kind), inputs["base"], inputs["position"])
            commit_kind(self.front.kinds[kind], carried, LayerInputs(**since))
            left |= {spec.output: carried.left[spec.tensor.name] for spec in specs}
        return left

    def _call(self, name: str, inputs: Mapping[str, Tensor], states: Any, watch: Any) -> dict[str, Tensor]:
        front, call = self.front, self.decoder.call(name)
        count = inputs.get("count", torch.ones(1, dtype=torch.int32))
        x, _ = front.embed(call, inputs["position"], inputs["input_ids"], None)
        given = front.see(call, inputs["position"], count, inputs["base"])
        rows: dict[str, list[Tensor]] = {}
        for index, layer in enumerate(self.decoder.stack):
            kind, place = layer.kind, self.decoder.places[index]
            attends = front.attends(kind)
            cache: Cache = self.decoder.cache(index, states, given[kind]) if attends else NoCache()
            buffers = [spec for spec in front.row_buffers.values() if spec.kind == kind]
            for buffer in buffers:
                specs = [spec for spec in front.carried.values() if spec.kind == kind]
                kept = {spec.tensor.name: inputs[spec.name][place : place + 1] for spec in specs}
                cache.carried = Carried(kept, buffer=Buffer(inputs[buffer.name][place : place + 1], buffer.parts))
            x = layer(x, given[kind], cache, None)
            for buffer in buffers:
                rows.setdefault(f"new_{buffer.name}", []).append(cache.carried.rows.new_rows)
        logits = self.decoder.logits(x)[0]
        return {"logits": logits[: int(count)], **{name: torch.cat(each) for name, each in rows.items()}}


def short_convolutions() -> Any:
    from transformers import Lfm2Config, Lfm2ForCausalLM

    config = Lfm2Config(
        vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=2,
        num_key_value_heads=1, block_auto_adjust_ff_dim=False, conv_L_cache=4,
        layer_types=["conv", "full_attention", "conv"], max_position_embeddings=128, eos_token_id=None,
    )  # fmt: skip
    return small_model(Lfm2ForCausalLM, config)


def state_spaces() -> Any:
    from transformers import BambaConfig, BambaForCausalLM

    config = BambaConfig(
        vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=2,
        num_key_value_heads=1, attn_layer_indices=[1], mamba_n_heads=4, mamba_d_head=16, mamba_n_groups=2,
        mamba_d_state=8, mamba_expand=2, max_position_embeddings=128, eos_token_id=None,
    )  # fmt: skip
    return small_model(BambaForCausalLM, config)


def state_spaces_beside_attention() -> Any:
    from transformers import FalconH1Config, FalconH1ForCausalLM

    config = FalconH1Config(
        vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, mamba_n_heads=4, mamba_d_ssm=64, mamba_n_groups=2, mamba_d_state=8,
        max_position_embeddings=128, key_multiplier=0.7, ssm_multipliers=[0.9, 1.1, 0.8, 1.2, 0.7], eos_token_id=None,
    )  # fmt: skip
    return small_model(FalconH1ForCausalLM, config)


def channels() -> Any:
    from transformers import KimiLinearConfig, KimiLinearForCausalLM

    config = KimiLinearConfig(
        vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=2,
        num_key_value_heads=2, kv_lora_rank=8, qk_nope_head_dim=8, qk_rope_head_dim=8, v_head_dim=8,
        linear_head_dim=8, linear_num_heads=2, mlp_layer_types=["dense"] * 3,
        layer_types=["linear_attention", "full_attention", "linear_attention"], max_position_embeddings=128,
        eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    return small_model(KimiLinearForCausalLM, config)


def fixed_rates() -> Any:
    from transformers import MiniMaxConfig, MiniMaxForCausalLM

    config = MiniMaxConfig(
        vocab_size=96, hidden_size=32, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2,
        num_key_value_heads=1, num_local_experts=3, linear_attn_alpha_factor=0.7, mlp_beta_factor=1.2,
        layer_types=["linear_attention", "full_attention", "linear_attention"], max_position_embeddings=128,
        eos_token_id=None,
    )  # fmt: skip
    config._experts_implementation = "eager"
    return small_model(MiniMaxForCausalLM, config)


@pytest.mark.usefixtures("small_tensors")
@pytest.mark.parametrize(
    "make", [small_delta, short_convolutions, state_spaces, state_spaces_beside_attention, channels, fixed_rates]
)
def test_rejected_guesses_and_commits_leave_no_trace(make: Any, tmp_path: Path) -> None:
    """Calls of every kind from any position since the last commit: guesses that are wrong, padding, rows in a ring."""
    theirs = make()
    sizes = {"prefill": PREFILL, "score": SCORE}
    recipe, checkpoint = save_delta(theirs, tmp_path, context=LENGTH + 8, buffer=ROWS, functions=sizes)
    decoder = build_decoder(recipe)
    weights = bind_weights(decoder, checkpoint)
    fill(decoder, lambda name: weights[name].read())
    carried = {name: spec.shape for name, spec in decoder.front.carried.items()}
    buffer = RowBuffer({name: spec.shape for name, spec in decoder.front.row_buffers.items()}, SCORE - 1)
    program, chance = SavedProgram(Modules(decoder), None, carried, buffer=buffer), random.Random(0)
    text = [chance.randrange(96) for _ in range(LENGTH)]
    ref = theirs(torch.tensor([text]), use_cache=False).logits[0]

    def call(name: str, position: int, tokens: list[int]) -> Tensor:
        query = decoder.recipe.export.functions.queries[name]
        padded = tokens + [chance.randrange(96) for _ in range(query - len(tokens))]
        inputs = {"input_ids": torch.tensor([padded]), "position": torch.tensor([position], dtype=torch.int32)}
        if name != "decode":
            inputs["count"] = torch.tensor([len(tokens)], dtype=torch.int32)
        return program.call(name, inputs)["logits"]

    position, found, bases = 0, {}, set()
    while position < LENGTH:
        name = chance.choice(["prefill", "decode", "score"])
        size = min(chance.randint(1, decoder.recipe.export.functions.queries[name]), LENGTH - position)
        right = chance.randint(1, size)  # how many of the tokens are the text's own; what is behind them is rejected
        guesses = text[position : position + right] + [chance.randrange(96) for _ in range(size - right)]
        rows = call(name, position, guesses)
        found |= {position + row: rows[row] for row in range(right)}
        position += right
        bases.add(program.base)
    assert len(bases) > 4  # commits
    assert psnr(ref, torch.stack([found[each] for each in range(LENGTH)])) > 115
