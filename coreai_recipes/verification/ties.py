"""Choices whose scores are equal within rounding: which of two such experts a router takes is the kernel's rounding, on
each processor another one, and nobody's mistake.

Where the two choose differently, transformers' own scores decide. What ours took instead must have a score there within
TIE of what it stands for; then it is named a tie, and our layer goes on with transformers' choice, weighed by our own
router: all that follows is compared as everywhere. Any other choice is left as it is, and is seen.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from coreai_recipes.primitives.experts import Router, ScoreRouter

# Of a probability, whose logits are then as far apart; else (logits, scores with a bias) of 1, or of the largest where
# that is more. As between two tokens (`greedy`): what rounding does to a logit is a hundredth of it.
TIE = 1e-4


@dataclass(frozen=True)
class Choice:
    """What a layer of transformers chose its experts by: the scores of all of them (S, E) and the numbers of those that
    it took (S, top). Where it chose among groups first: their scores (S, G), and those that it took."""

    scores: Tensor
    taken: Tensor
    group_scores: Tensor | None = None
    groups_taken: Tensor | None = None


@dataclass(frozen=True)
class Tie:
    """A place where ours took other experts than transformers, whose scores there are equal within TIE."""

    position: int
    theirs: tuple[int, ...]
    ours: tuple[int, ...]
    gap: float

    def __str__(self) -> str:
        theirs, ours = (" and ".join(map(str, numbers)) for numbers in (self.theirs, self.ours))
        return f"position {self.position}: transformers takes {theirs}, ours {ours}, scores apart by {self.gap:.2g}"


class TopK(TorchFunctionMode):
    """Notes the scores and the numbers of every top-k while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.noted: list[tuple[Tensor, Tensor]] = []

    def __torch_function__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        result = function(*arguments, **(named or {}))
        if function in (torch.topk, Tensor.topk):
            scores = arguments[0] if arguments else (named or {})["input"]
            self.noted.append((scores.detach(), result.indices.detach()))
        return result

    def choice(self) -> Choice | None:
        """The choice of experts among what was noted: the last top-k of single scores, and that of groups before it."""
        flat = [(s.reshape(-1, s.shape[-1]), i.reshape(-1, i.shape[-1])) for s, i in self.noted if s.dim() < 3]
        if not flat:
            return None
        scores, taken = flat[-1]
        inside = [s for s, _ in self.noted if s.dim() == 3 and s.shape[1] * s.shape[2] == scores.shape[1]]
        if not inside:
            return Choice(scores, taken)
        # of a group that is not taken, transformers covers the scores: here are all
        groups = next((g for g in flat[:-1] if g[0].shape[1] == inside[-1].shape[1]), (None, None))
        return Choice(inside[-1].flatten(1), taken, *groups)


def settle(choice: Choice, ours: Tensor, start: int = 0) -> list[Tie]:
    """The ties among the places where `ours` (S, top), the experts that we took at positions from `start` on, are
    others than transformers'."""
    taken = choice.taken[start : start + len(ours)]
    if taken.shape != ours.shape:
        return []  # another number of experts: a mistake, and no tie
    found = []
    for row in (ours.sort(1)[0] != taken.sort(1)[0]).any(1).nonzero().flatten().tolist():
        position, theirs, mine = start + row, set(taken[row].tolist()), set(ours[row].tolist())
        gap = _gap(choice, position, theirs, mine)
        if gap is not None:
            found.append(Tie(position, tuple(sorted(theirs - mine)), tuple(sorted(mine - theirs)), gap))
    return found


def _gap(choice: Choice, position: int, theirs: set[int], ours: set[int]) -> float | None:
    """By how much what ours took lies below what transformers took in its place; None beyond TIE."""
    scores = choice.scores[position]
    if choice.group_scores is not None and choice.groups_taken is not None:
        size = scores.numel() // choice.group_scores.shape[1]
        taken, other = set(choice.groups_taken[position].tolist()), {expert // size for expert in ours}
        if not other <= taken:
            # among equal groups ours took another: its experts are as good as they are
            sums = choice.group_scores[position]
            return _within(choice.group_scores, sums[sorted(taken)].min(), sums[sorted(other - taken)].min())
    return _within(choice.scores, scores[sorted(theirs - ours)].max(), scores[sorted(ours - theirs)].min())


def _within(scores: Tensor, one: Tensor, other: Tensor) -> float | None:
    """The gap of two of the `scores` of all positions, where it is within TIE."""
    are_probabilities = scores.min() >= 0 and scores.max() <= 1
    gap = float(one.double() - other.double())
    return gap if gap <= TIE * (float(one) if are_probabilities else max(1.0, float(scores.abs().max()))) else None


@contextmanager
def noting(layers: nn.ModuleList) -> Iterator[Callable[[], list[Choice | None]]]:
    """While transformers runs: gives, when asked, what each of its layers chose in all calls, row below row."""
    noted: list[list[Choice]] = [[] for _ in layers]
    top_k = TopK()

    def note(choices: list[Choice]) -> None:
        choice = top_k.choice()
        if choice is not None:
            choices.append(choice)

    def hook(choices: list[Choice]) -> Callable[..., None]:
        return lambda *_: note(choices)

    handles = [layer.register_forward_pre_hook(lambda *_: top_k.noted.clear()) for layer in layers]
    handles += [layer.register_forward_hook(hook(found)) for layer, found in zip(layers, noted, strict=True)]
    try:
        with top_k:
            yield lambda: [_join(choices) for choices in noted]
    finally:
        for handle in handles:
            handle.remove()


def _join(choices: list[Choice]) -> Choice | None:
    if not choices:
        return None
    groups = [(c.group_scores, c.groups_taken) for c in choices]
    joined = [
        torch.cat([part for part in parts if part is not None])
        for parts in zip(*groups, strict=True)
        if parts[0] is not None
    ]
    return Choice(torch.cat([c.scores for c in choices]), torch.cat([c.taken for c in choices]), *joined)


@contextmanager
def following(layer: nn.Module, choice: Choice | None, on_tie: Callable[[Tie], object]) -> Iterator[None]:
    """Our layer with transformers' `choice` where it is a tie, which `on_tie` is told of. Calls go from row to row."""
    routers = [module for module in layer.modules() if isinstance(module, Router | ScoreRouter)]
    if choice is None or not routers:
        yield
        return
    row = 0

    def settled(router: Any, given: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        nonlocal row
        chosen = output[1][0, :, 0].T.clone()  # (S, top)
        ties = settle(choice, chosen, row)
        for tie in ties:
            chosen[tie.position - row] = choice.taken[tie.position]
            on_tie(tie)
        row += len(chosen)
        if not ties:
            return output
        numbers = chosen.T[None, :, None]  # (1, top, 1, S)
        return router.weigh(router.logits(*given), numbers), numbers

    handle = routers[-1].register_forward_hook(settled)
    try:
        yield
    finally:
        handle.remove()
