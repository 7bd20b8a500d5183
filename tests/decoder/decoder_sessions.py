"""Decoders of every sort of cache, and sessions of calls that are held against the plain sequence."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache

import torch
from families import FAMILIES, Pair, llama, mistral, qwen3
from figures import psnr
from hypothesis import strategies as st
from small_models import small_model
from torch import Tensor, nn

from coreai_recipes.decoder.model import Decoder, build_decoder, fill
from coreai_recipes.recipe.schema import Recipe

CONTEXT, PREFILL, SCORE, WINDOW = 64, 16, 5, 7


FLOOR = 100


def random_ids(length: int, seed: int = 0, vocab_size: int = 131) -> Tensor:
    return torch.randint(0, vocab_size, (1, length), generator=torch.Generator().manual_seed(seed))


def stitched() -> tuple[Decoder, Callable[[Tensor], Tensor]]:
    """A decoder of three kinds that differ in everything a kind may, and transformers' layers in the same order.

    No family of transformers has such kinds; one-layer models of three families, called one after the other, do.
    """
    parts = {
        "wide": llama(num_hidden_layers=1, theta=1e6, num_attention_heads=3, num_key_value_heads=1, head_dim=32),
        "near": mistral(num_hidden_layers=1, sliding_window=4, num_attention_heads=4, num_key_value_heads=4),
        "far": qwen3(num_hidden_layers=1, head_dim=24, use_sliding_window=True, sliding_window=11, max_window_layers=0),
    }
    order = ["near", "wide", "near", "far", "wide"]
    kinds = {name: next(iter(part.recipe.model.model_dump()["kinds"].values())) for name, part in parts.items()}
    kinds["far"]["attention"].update(kind="sliding", window=11)
    data = parts["wide"].recipe.model_dump()
    data["model"].update(kinds=kinds, layers=order)
    recipe = Recipe.model_validate(data)
    # every layer has weights of its own, so that no two can be mixed up unseen
    models = [
        small_model(type(parts[name].model), parts[name].model.config, seed=9 + i) for i, name in enumerate(order)
    ]
    for model in models:
        model.model.norm = nn.Identity()
    ends = parts["wide"]

    def read(name: str) -> Tensor:
        if not name.startswith("layers."):
            return ends.read(name)
        _, index, rest = name.split(".", 2)
        return Pair(recipe, models[int(index)]).read(f"layers.0.{rest}")

    def reference(ids: Tensor) -> Tensor:
        x = ends.model.model.embed_tokens(ids)
        for model in models:
            x = model.model(inputs_embeds=x).last_hidden_state
        return ends.model.lm_head(ends.model.model.norm(x))

    decoder = build_decoder(recipe)
    fill(decoder, read)
    return decoder, reference


@dataclass
class Session:
    """A decoder with its states, held against the plain sequence of the tokens that survive."""

    decoder: Decoder
    states: dict[str, Tensor] = field(default_factory=dict)
    ids: list[int] = field(default_factory=list)
    unchecked: list[tuple[int, Tensor]] = field(default_factory=list)
    figures: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.states = self.decoder.make_states()

    def call(self, position: int, tokens: list[int], queries: int, padding: int = 0) -> Tensor:
        """Take `tokens` from `position` on, in a function of `queries` tokens: their logits."""
        count = len(tokens)
        assert position <= len(self.ids)
        assert position + count <= self.decoder.recipe.export.context
        if position < len(self.ids):
            self.check()
        given = torch.tensor([tokens + [padding] * (queries - count)], dtype=torch.int32)
        logits = self.decoder(given, position, count, self.states)[:, :count]
        self.ids = self.ids[:position] + tokens
        self.unchecked.append((position, logits))
        return logits

    def check(self) -> None:
        """Take the figure of every call since the last rollback: up to there one plain sequence holds them all."""
        plain = self.decoder(torch.tensor([self.ids]))
        for position, logits in self.unchecked:
            self.figures.append(psnr(plain[:, position : position + logits.shape[1]], logits))
        self.unchecked.clear()


def worst_figure(decoder: Decoder, calls: list[tuple[int, ...]], seed: int = 1) -> float:
    """The lowest figure of `calls` (position, count, queries[, padding id]), each with new random tokens."""
    session, generator = Session(decoder), torch.Generator().manual_seed(seed)
    for position, count, queries, *padding in calls:
        tokens = torch.randint(0, 131, (count,), generator=generator).tolist()
        session.call(position, tokens, queries, *padding)
    session.check()
    return min(session.figures)


def in_turn(*counts: int, queries: int = PREFILL, then_decode_to: int = CONTEXT) -> list[tuple[int, int, int]]:
    """Calls of `queries` tokens with so many real ones each, then single tokens up to a position."""
    calls, position = [], 0
    for count in counts:
        calls.append((position, count, queries))
        position += count
    return calls + [(at, 1, 1) for at in range(position, then_decode_to)]


@cache
def full() -> Decoder:
    return FAMILIES["llama"]().decoder()


@cache
def shifting() -> Decoder:
    """Without `score`: a ring of exactly the window."""
    return mistral(sliding_window=32, functions={"prefill": PREFILL}).decoder()


@cache
def ring() -> Decoder:
    """The window and what `score` may roll back are just a block of rows."""
    return mistral(sliding_window=28).decoder()


@cache
def mixed() -> Decoder:
    """Full and sliding layers, of different kinds, windows and head_dims."""
    return stitched()[0]


@cache
def whole_window() -> Decoder:
    """A window as long as the context."""
    return mistral(sliding_window=CONTEXT).decoder()


@cache
def capped() -> Decoder:
    return FAMILIES["gemma2"]().decoder()


DECODERS = {
    "full": full,
    "shifting": shifting,
    "ring": ring,
    "mixed": mixed,
    "whole_window": whole_window,
    "capped": capped,
}


PLANS = {
    "decode alone": in_turn(),
    "one chunk": in_turn(16),
    "chunks that cross the wrap": in_turn(5, 16, 3, 16, 11),
    "full chunks": in_turn(16, 16, 16, 16),
    "many short chunks": in_turn(*[3] * 20),
    "chunks of one token": in_turn(*[1] * 12),
    "chunks between decode steps": [(0, 1, 1), (1, 13, 16), (14, 1, 1), (15, 1, 1), (16, 16, 16), (32, 1, 1)],
    "score after prefill": [(0, 16, 16), (16, 5, 5), (21, 4, 5), (25, 1, 5), (26, 1, 1), (27, 2, 16), (29, 5, 5)],
}


@st.composite
def sessions(draw: st.DrawFn, rollback: int | None) -> Iterator[tuple[int, int, int, int]]:
    """Any valid calls (position, count, queries, padding): `rollback` from the furthest position written, or any."""
    calls, at, furthest = [], 0, 0
    for _ in range(draw(st.integers(2, 12))):
        lowest = 0 if rollback is None else max(0, furthest - rollback)
        position = draw(st.integers(min(lowest, at), at)) if draw(st.booleans()) else at
        position = min(position, CONTEXT - 1)
        if position < lowest:
            break
        queries = draw(st.sampled_from([1, SCORE, PREFILL]))
        count = draw(st.integers(1, min(queries, CONTEXT - position)))
        calls.append((position, count, queries, draw(st.integers(0, 130))))
        at = position + count
        furthest = max(furthest, at)
    return calls
