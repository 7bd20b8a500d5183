"""Greedy decoding: what transformers writes with its cache, our Decoder must write with its own.

Ours is given transformers' continuation in one chunk and asked what it would have said at each place. By induction that
is the same as decoding on its own: up to the first place where they part, its prefix is what it would have written.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from coreai_recipes.checkpoint.base import Checkpoint
from coreai_recipes.decoder.filling import Weight, bind_weights, fill_from
from coreai_recipes.decoder.model import Decoder, build_decoder
from coreai_recipes.recipe.schema import AttentionKind, Mamba2, Recipe
from coreai_recipes.verification.reference import Reference
from coreai_recipes.verification.their_cache import make_cache, on_cache
from coreai_recipes.verification.ties import following, has_routers, noting

TOKENS = 64
TIE_GAP = 1e-4


@dataclass(frozen=True)
class Divergence:
    """A place where the choices differ: `gap` is that of the two tokens' logits, as transformers has them."""

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
            f"prompt {self.prompt}, token {self.step}: transformers {self.theirs}, ours {self.ours}, gap {self.gap:.2g}"
        )


def compare_greedy(
    recipe: Recipe,
    checkpoint: Checkpoint,
    prompts: Sequence[Sequence[int]],
    on_prompt: Callable[[int], None],
    on_tie: Callable[[str], object] = lambda tie: None,
) -> list[Divergence]:
    """Where the continuations of `prompts` differ; empty when all are equal. Both float32 models are in memory.

    Among equal experts ours takes those that transformers takes; `on_tie` is told of each.
    """
    longest = min(recipe.export.context, max(map(len, prompts)) + TOKENS)
    steps = [min(TOKENS, longest - len(prompt)) for prompt in prompts]
    found: list[Divergence] = []
    with torch.inference_mode():
        reference = Reference(recipe, checkpoint)
        model, decoder = reference.fill_all(), fill_whole(recipe, checkpoint, longest)
        # else its single steps are not its whole sequence, which is what ours follows
        cached = not any(is_bounded_below(kind.attention) for kind in recipe.model.kinds.values())
        texts = [] if cached else generate(model, prompts, steps, cached)
        with noting(reference.layers, has_routers(decoder)) as choices:
            if cached:
                texts = generate(model, prompts, steps)
            else:
                run_whole(model, prompts, texts)
        by_layer = choices()
        for index, (prompt, (tokens, logits)) in enumerate(zip(prompts, texts, strict=True)):
            rows = rows_of(index, prompts, len(tokens)) if cached else rows_of_whole(index, prompts, texts)
            with ExitStack() as stack:
                for number, (layer, choice) in enumerate(zip(decoder.stack, by_layer, strict=True)):
                    place, own = f"prompt {index}, layers.{number}", None if choice is None else choice.at(rows)
                    stack.enter_context(following(layer, own, lambda tie, at=place: on_tie(f"{at}, {tie}")))  # type: ignore[misc]
                ours = choose(decoder, prompt, tokens)
            found += _find_divergences(index, tokens, ours, logits)
            on_prompt(index + 1)
    return found


def is_bounded_below(attention: AttentionKind) -> bool:
    """Whether a token's step has a lower bound, of which transformers' step of one token on a cache knows nothing:
    its scan of several does (modeling_nemotron_h, mamba2_selective_state_update and mamba2_chunk_scan)."""
    return isinstance(attention, Mamba2) and attention.step_min is not None


def generate(
    model: nn.Module, prompts: Sequence[Sequence[int]], steps: Sequence[int], cached: bool = True
) -> list[tuple[Tensor, Tensor]]:
    """transformers' greedy tokens after each prompt, (steps,), and the logits (steps, V) that it chose them by.

    All prompts go on together, one position after the other and without padding: first as many tokens as the shortest
    has, then one a call, which is a prompt's own as long as it has one, else the one that was chosen. A model that
    keeps nothing (GPT) is given all of them again, and so is any where `cached` is false.
    """
    cache = make_cache(model)
    shortest, ends = min(map(len, prompts)), [len(p) + n for p, n in zip(prompts, steps, strict=True)]
    tokens: list[list[int]] = [[] for _ in prompts]
    logits: list[list[Tensor]] = [[] for _ in prompts]
    new = torch.tensor([prompt[:shortest] for prompt in prompts])
    for position in range(shortest, max(ends)):  # of the token that is chosen
        last = torch.tensor([new.shape[1] - 1])  # a tensor: see `keep_all`
        said = on_cache(model, cache, position - new.shape[1], new.shape[1]) if cached else {"use_cache": False}
        output: Any = model(input_ids=new, logits_to_keep=last, **said)
        best = output.logits[:, -1].argmax(-1).tolist()
        for row, prompt in enumerate(prompts):
            if len(prompt) <= position < ends[row]:
                tokens[row].append(best[row])
                logits[row].append(output.logits[row, -1])
        chosen = torch.tensor(
            [[prompt[position] if position < len(prompt) else best[row]] for row, prompt in enumerate(prompts)]
        )
        new = chosen if cached and cache.keeps else torch.cat((new, chosen), 1)
    return [(torch.tensor(ids), torch.stack(rows)) for ids, rows in zip(tokens, logits, strict=True)]


def run_whole(model: nn.Module, prompts: Sequence[Sequence[int]], texts: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Each prompt and its continuation but for the last token through transformers' model, in one call."""
    wholes = [
        torch.cat((torch.tensor(prompt), tokens[:-1])) for prompt, (tokens, _) in zip(prompts, texts, strict=True)
    ]
    model(input_ids=nn.utils.rnn.pad_sequence(wholes, batch_first=True), use_cache=False)


def rows_of_whole(index: int, prompts: Sequence[Sequence[int]], texts: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """As `rows_of`, among the rows of the call of `run_whole`."""
    lengths = [len(prompt) + len(tokens) - 1 for prompt, (tokens, _) in zip(prompts, texts, strict=True)]
    return index * max(lengths) + torch.arange(lengths[index])


def rows_of(index: int, prompts: Sequence[Sequence[int]], steps: int) -> Tensor:
    """Where the positions of one prompt, and of the `steps` tokens after it but the last, are among the rows of all
    calls of `generate`, row below row."""
    shortest, count = min(map(len, prompts)), len(prompts)
    later = torch.arange(len(prompts[index]) + steps - 1 - shortest)
    return torch.cat((index * shortest + torch.arange(shortest), count * shortest + later * count + index))


def fill_whole(recipe: Recipe, weights: Checkpoint | Mapping[str, Weight], positions: int) -> Decoder:
    """The Decoder with all weights of a checkpoint, or with those that are given, and states for at most that many
    positions."""
    decoder = build_decoder(recipe, positions=positions)
    fill_from(decoder, bind_weights(decoder, weights) if isinstance(weights, Checkpoint) else weights)
    return decoder


def choose(decoder: Decoder, prompt: Sequence[int], continuation: Tensor) -> Tensor:
    """Our best token at each place of `continuation` (steps,), after `prompt` has gone into the caches."""
    states, length = decoder.make_states(), len(prompt)
    queries = decoder.recipe.export.functions.prefill
    chunks = [(0, torch.tensor([list(prompt)]))]
    chunks += [(length + i * queries, chunk[None]) for i, chunk in enumerate(torch.split(continuation[:-1], queries))]
    found = [decoder(chunk, position, chunk.shape[1], states)[0] for position, chunk in chunks if chunk.numel()]
    return torch.cat(found)[length - 1 :].argmax(-1)


def _find_divergences(prompt: int, theirs: Tensor, ours: Tensor, logits: Tensor) -> Iterator[Divergence]:
    for step in (theirs != ours).nonzero().flatten().tolist():
        one, other = int(theirs[step]), int(ours[step])
        yield Divergence(prompt, step, one, other, float(logits[step, one] - logits[step, other]))
