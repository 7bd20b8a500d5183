"""transformers' own draft and its assisted generation, round by round: what a recipe's draft must equal."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from coreai_recipes.checkpoint.base import Checkpoint
from coreai_recipes.errors import CheckpointError
from coreai_recipes.recipe.schema import Recipe
from coreai_recipes.running.speculation import Round
from coreai_recipes.verification.reference import ATTENTION, register_attention, restore_buffers
from coreai_recipes.verification.reference_config import config_of
from coreai_recipes.verification.reference_weights import Weights


@contextmanager
def all_layers_may_share() -> Iterator[None]:
    """transformers 5.23.0 refuses a Gemma 4 whose layers all share caches, which every draft is; 5.22.0 did not.

    `Gemma4TextConfig.kv_sharing_modes` asks that each type of layer that shares has one that owns a cache; a draft's
    are its target's.
    """
    from transformers.models.gemma4.configuration_gemma4 import Gemma4TextConfig

    original = Gemma4TextConfig.kv_sharing_modes

    def modes(config: Any) -> list[str | None]:
        if config.num_kv_shared_layers == config.num_hidden_layers:
            return ["reuse"] * config.num_hidden_layers
        return original.fget(config)  # type: ignore[no-any-return]

    with patch.object(Gemma4TextConfig, "kv_sharing_modes", property(modes)):
        yield


def load_draft(recipe: Recipe, checkpoint: Checkpoint) -> nn.Module:
    """transformers' draft with the checkpoint's weights, float32, in memory."""
    from transformers import Gemma4AssistantForCausalLM

    if recipe.draft is None:
        raise ValueError(f"{recipe.name} has no draft")
    register_attention()
    wanted, found = recipe.draft.reference.model_type, checkpoint.config.get("model_type")
    if found != wanted:
        line = f"{checkpoint.place}: config.json says model_type {found}, but the reference of the recipe's draft is"
        raise CheckpointError(f"{line} {wanted}")
    with all_layers_may_share():
        config = config_of(wanted, checkpoint.config, checkpoint)
        with torch.device("meta"):
            model = Gemma4AssistantForCausalLM._from_config(
                config, dtype=torch.float32, attn_implementation=ATTENTION
            ).eval()
    weights = Weights(model, checkpoint)
    restore_buffers(model)
    weights.fill(model)
    model.tie_weights()
    return model  # type: ignore[no-any-return]


@dataclass
class _Recorder:
    """The text's length and the drafted tokens at each request for candidates."""

    requests: list[tuple[int, tuple[int, ...]]] = field(default_factory=list)

    def rounds(self, prompt: int, text: Sequence[int]) -> list[Round]:
        """What each call of the target gave; `text` is the whole of it."""
        ends = [length for length, _ in self.requests[1:]] + [len(text)]
        found, start = [], prompt
        for (_, drafted), end in zip(self.requests, ends, strict=True):
            found.append(Round(drafted, max(end - start - 1, 0), tuple(text[start:end])))
            start = end
        return found


def assisted_rounds(
    target: nn.Module, draft: nn.Module, prompt: Sequence[int], max_tokens: int, drafts: int
) -> list[Round]:
    """transformers' `generate(assistant_model=...)`, greedy, `drafts` tokens a round, without an end token."""
    from transformers.generation.candidate_generator import SinglePositionMultiTokenCandidateGenerator as Generator

    recorder, original = _Recorder(), Generator.get_candidates

    def get_candidates(self: Any, input_ids: Tensor, **named: Any) -> tuple[Tensor, Any]:
        candidates, logits = original(self, input_ids=input_ids, **named)
        length = input_ids.shape[1]
        recorder.requests.append((length, tuple(candidates[0, length:].tolist())))
        return candidates, logits

    draft.generation_config.num_assistant_tokens = drafts  # type: ignore[union-attr]
    draft.generation_config.num_assistant_tokens_schedule = "constant"  # type: ignore[union-attr]
    ids = torch.tensor([list(prompt)])
    with torch.inference_mode(), patch.object(Generator, "get_candidates", get_candidates), all_layers_may_share():
        text = target.generate(  # type: ignore[operator]
            ids,
            attention_mask=torch.ones_like(ids),
            assistant_model=draft,
            do_sample=False,
            max_new_tokens=max_tokens,
            eos_token_id=None,
            pad_token_id=0,
        )
    return recorder.rounds(len(prompt), text[0].tolist())
