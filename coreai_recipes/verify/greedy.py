"""Greedy decoding: what transformers writes with its cache, our Decoder must write with its own.

Ours is given transformers' continuation in one chunk and asked what it would have said at each place. By induction that
is the same as decoding on its own: up to the first place where they part, its prefix is what it would have written.
"""

from collections.abc import Iterator, Sequence
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


@dataclass(frozen=True)
class Divergence:
    """A place where the choices differ: `gap` is between transformers' two largest logits there."""

    prompt: int
    step: int
    theirs: int
    ours: int
    gap: float

    @property
    def is_tie(self) -> bool:
        return self.gap < TIE_GAP

    def __str__(self) -> str:
        return (
            f"prompt {self.prompt}, token {self.step}: transformers {self.theirs}, ours {self.ours}, "
            f"top-two gap {self.gap:.2g}"
        )


def compare_greedy(recipe: Recipe, checkpoint: Checkpoint, prompts: Sequence[Sequence[int]]) -> list[Divergence]:
    """Where the continuations of `prompts`, cut to one length, differ; empty when all are equal.

    Both whole models are in memory, in float32.
    """
    length = min(len(prompt) for prompt in prompts)
    steps = min(TOKENS, recipe.export.context - length)
    cut = torch.tensor([list(prompt[:length]) for prompt in prompts])  # (prompts, length)
    with torch.inference_mode():
        tokens, gaps = generate(Reference(recipe, checkpoint).fill_all(), cut, steps)
        decoder = fill_whole(recipe, checkpoint, length + steps)
        choices = [choose(decoder, prompt[None], theirs) for prompt, theirs in zip(cut, tokens, strict=True)]
    return list(_find_divergences(tokens, torch.stack(choices), gaps))


def generate(model: nn.Module, prompts: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """transformers' greedy tokens after `prompts`, (prompts, steps), and the gap between its two best logits at each."""
    from transformers import DynamicCache

    cache = DynamicCache(config=model.config)
    tokens, gaps, new = [], [], prompts
    for _ in range(steps):
        output: Any = model(input_ids=new, past_key_values=cache, logits_to_keep=1)
        best = output.logits[:, -1].topk(2)
        new = best.indices[:, :1]
        tokens.append(new)
        gaps.append(best.values[:, :1] - best.values[:, 1:])
    return torch.cat(tokens, 1), torch.cat(gaps, 1)


def fill_whole(recipe: Recipe, checkpoint: Checkpoint, context: int) -> Decoder:
    """The Decoder with all of its weights, and states for no more than `context` positions."""
    export = recipe.export.model_copy(update={"context": context})
    decoder = build_decoder(recipe.model_copy(update={"export": export}))
    fill_from(decoder, bind_decoder(decoder, checkpoint))
    return decoder


def choose(decoder: Decoder, prompt: Tensor, continuation: Tensor) -> Tensor:
    """Our best token at each place of `continuation` (steps,), after `prompt` (1, S) has gone into the caches."""
    states = decoder.make_states()
    first = decoder(prompt, 0, prompt.shape[1], states)[0, -1:]
    queries = decoder.recipe.export.functions.prefill
    found = [first]
    for start in range(0, len(continuation) - 1, queries):
        chunk = continuation[start : min(start + queries, len(continuation) - 1)][None]
        found.append(decoder(chunk, prompt.shape[1] + start, chunk.shape[1], states)[0])
    return torch.cat(found).argmax(-1)


def _find_divergences(theirs: Tensor, ours: Tensor, gaps: Tensor) -> Iterator[Divergence]:
    for prompt, step in (theirs != ours).nonzero().tolist():
        here = (prompt, step)
        yield Divergence(prompt, step, int(theirs[here]), int(ours[here]), float(gaps[here]))
