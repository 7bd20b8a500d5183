"""Greedy decoding with caches on both sides: transformers' own and our Decoder must say the same."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from coreai_recipes.checkpoint.base import Checkpoint
from coreai_recipes.filling import bind_decoder, fill_from
from coreai_recipes.model import Decoder, build_decoder
from coreai_recipes.recipe.schema import Recipe
from coreai_recipes.verify.reference import Reference

TOKENS = 64
TIE_GAP = 1e-4

# Takes the tokens that are new and gives the logits (V,) of the last of them.
Step = Callable[[Sequence[int]], Tensor]


@dataclass(frozen=True)
class Divergence:
    """Where two continuations part: `gap` is between transformers' two largest logits there."""

    prompt: int
    step: int
    theirs: int
    ours: int
    gap: float

    @property
    def is_tie(self) -> bool:
        return self.gap < TIE_GAP

    def __str__(self) -> str:
        verdict = "a tie" if self.is_tie else "not equal"
        return (
            f"prompt {self.prompt}, token {self.step}: transformers {self.theirs}, ours {self.ours}, "
            f"top-two gap {self.gap:.2g}: {verdict}"
        )


def compare_greedy(
    recipe: Recipe, checkpoint: Checkpoint, prompts: Sequence[Sequence[int]], on_prompt: Callable[[int], None]
) -> list[Divergence]:
    """Where the continuations of `prompts` part; empty when all are equal. Both whole models are in memory."""
    longest = min(recipe.export.context, max(map(len, prompts)) + TOKENS)
    theirs = Reference(recipe, checkpoint).fill_all()
    ours = fill_whole(recipe, checkpoint, longest)
    found = []
    for index, prompt in enumerate(prompts):
        with torch.inference_mode():
            steps = min(TOKENS, longest - len(prompt))
            parted = _compare(index, prompt, steps, reference_step(theirs), decoder_step(ours))
        found += [] if parted is None else [parted]
        on_prompt(index + 1)
    return found


def fill_whole(recipe: Recipe, checkpoint: Checkpoint, context: int) -> Decoder:
    """The Decoder with all of its weights, and states for no more than `context` positions."""
    export = recipe.export.model_copy(update={"context": context})
    decoder = build_decoder(recipe.model_copy(update={"export": export}))
    fill_from(decoder, bind_decoder(decoder, checkpoint))
    return decoder


def reference_step(model: nn.Module) -> Step:
    from transformers import DynamicCache

    cache = DynamicCache(config=model.config)

    def step(tokens: Sequence[int]) -> Tensor:
        output: Any = model(input_ids=torch.tensor([list(tokens)]), past_key_values=cache, logits_to_keep=1)
        return output.logits[0, -1]  # type: ignore[no-any-return]

    return step


def decoder_step(decoder: Decoder) -> Step:
    states, position = decoder.make_states(), 0

    def step(tokens: Sequence[int]) -> Tensor:
        nonlocal position
        logits = decoder(torch.tensor([list(tokens)]), position, len(tokens), states)
        position += len(tokens)
        return logits[0, -1]  # type: ignore[no-any-return]

    return step


def _compare(index: int, prompt: Sequence[int], steps: int, theirs: Step, ours: Step) -> Divergence | None:
    """Both continue on their own until they part."""
    for step, (logits, token) in enumerate(_continue(prompt, steps, theirs, ours)):
        best = logits.topk(2)
        if int(best.indices[0]) != token:
            gap = float(best.values[0] - best.values[1])
            return Divergence(index, step, int(best.indices[0]), token, gap)
    return None


def _continue(prompt: Sequence[int], steps: int, theirs: Step, ours: Step) -> Iterator[tuple[Tensor, int]]:
    """Their logits and our choice, `steps` times; both go on with their own choice, which is the same till they part."""
    tokens: Sequence[int] = prompt
    for _ in range(steps):
        logits, token = theirs(tokens), int(ours(tokens).argmax())
        yield logits, token
        tokens = [token]
