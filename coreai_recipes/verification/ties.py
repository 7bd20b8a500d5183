"""Choices whose scores are equal within rounding: which of two such experts a router takes is the kernel's rounding, on
each processor another one, and nobody's mistake.

Where two choose differently, the scores of the one that judges decide: transformers' own, or those of our torch modules
where a package is held against them. All that one took and the other did not must have scores there within TIE of each
other; then it is named a tie, and our layer goes on with the other's choice, weighed by our own router: what follows is
compared as everywhere. Any other choice is left as it is, and is seen.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from coreai_recipes.primitives.experts import Router, ScoreRouter

# Of a probability, whose logits are then as far apart; else (logits, scores with a bias) of 1, or of the largest where
# that is more. As between two tokens (`greedy`): what rounding does to a logit is a hundredth of it.
TIE = 1e-4
# The same where one of the two computes in float16: a unit in the last place of what is largest.
TIE_IN_FLOAT16 = 1e-3


@dataclass(frozen=True)
class ExpertChoice:
    """What a layer of transformers chose its experts by: the scores of all of them (S, E) and the numbers of those that
    it took (S, top). Where it chose among groups first: their scores (S, G), and those that it took."""

    scores: Tensor
    taken: Tensor
    group_scores: Tensor | None = None
    groups_taken: Tensor | None = None

    def at(self, rows: Tensor) -> "ExpertChoice":
        """The choice at some positions, in that order."""
        groups = None if self.group_scores is None else self.group_scores[rows]
        taken = None if self.groups_taken is None else self.groups_taken[rows]
        return ExpertChoice(self.scores[rows], self.taken[rows], groups, taken)


@dataclass(frozen=True)
class Tie:
    """A place where two took different experts, whose scores there are equal within TIE, and by whose numbers."""

    position: int
    one: tuple[int, ...]
    other: tuple[int, ...]
    gap: float
    names: tuple[str, str] = ("transformers", "ours")

    def __str__(self) -> str:
        one, other = (" and ".join(map(str, numbers)) for numbers in (self.one, self.other))
        return (
            f"position {self.position}: {self.names[0]} takes {one}, {self.names[1]} {other}, "
            f"scores apart by {self.gap:.2g}"
        )


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

    def choice(self) -> ExpertChoice | None:
        """The choice of experts among what was noted: the last top-k of single scores, and that of groups before it."""
        flat = [(s.reshape(-1, s.shape[-1]), i.reshape(-1, i.shape[-1])) for s, i in self.noted if s.dim() < 3]
        if not flat:
            return None
        scores, taken = flat[-1]
        inside = [s for s, _ in self.noted if s.dim() == 3 and s.shape[1] * s.shape[2] == scores.shape[1]]
        if not inside:
            return ExpertChoice(scores, taken)
        # of a group that is not taken, transformers covers the scores: here are all
        groups = next((g for g in flat[:-1] if g[0].shape[1] == inside[-1].shape[1]), (None, None))
        return ExpertChoice(inside[-1].flatten(1), taken, *groups)


def settle(choice: ExpertChoice, other: Tensor, start: int = 0, within: float = TIE) -> list[Tie]:
    """The ties among the places where `other` (S, top), the experts that another took at positions from `start` on,
    differ from the choice's."""
    taken = choice.taken[start : start + len(other)]
    if taken.shape != other.shape:
        return []  # another number of experts: a mistake, and no tie
    found = []
    for row in (other.sort(1)[0] != taken.sort(1)[0]).any(1).nonzero().flatten().tolist():
        position, ones, others = start + row, set(taken[row].tolist()), set(other[row].tolist())
        gap = _gap(choice, position, ones, others, within)
        if gap is not None:
            found.append(Tie(position, tuple(sorted(ones - others)), tuple(sorted(others - ones)), gap))
    return found


def _gap(choice: ExpertChoice, position: int, ones: set[int], others: set[int], within: float) -> float | None:
    """How far apart the scores are of what one took and the other did not; None beyond `within`."""
    scores = choice.scores[position]
    if choice.group_scores is not None and choice.groups_taken is not None:
        size = scores.numel() // choice.group_scores.shape[1]
        taken, other_groups = set(choice.groups_taken[position].tolist()), {expert // size for expert in others}
        if not other_groups <= taken:
            # among equal groups the other took another: its experts are as good as they are
            sums = choice.group_scores[position]
            spread = torch.stack((sums[sorted(taken)].min(), sums[sorted(other_groups - taken)].min()))
            return _within(choice.group_scores, spread, within)
    return _within(choice.scores, scores[sorted(ones ^ others)], within)


def _within(scores: Tensor, some: Tensor, within: float) -> float | None:
    """How far apart some of the `scores` of all positions are, where that is `within` so much."""
    are_probabilities = scores.min() >= 0 and scores.max() <= 1
    least, largest = some.double().min().item(), some.double().max().item()
    scale = largest if are_probabilities else max(1.0, float(scores.abs().max()))
    return largest - least if largest - least <= within * scale else None


@contextmanager
def noting(layers: nn.ModuleList, chooses: bool = True) -> Iterator[Callable[[], list[ExpertChoice | None]]]:
    """While transformers runs: gives, when asked, what each of its layers chose in all calls, row below row.

    Nobody would follow a choice where none of ours `chooses`, and to look at every operation takes time.
    """
    if not chooses:
        yield lambda: [None] * len(layers)
        return
    noted: list[list[ExpertChoice]] = [[] for _ in layers]
    top_k = TopK()

    def note(choices: list[ExpertChoice]) -> None:
        choice = top_k.choice()
        if choice is not None:
            choices.append(choice)

    def hook(choices: list[ExpertChoice]) -> Callable[..., None]:
        return lambda *_: note(choices)

    handles = [layer.register_forward_pre_hook(lambda *_: top_k.noted.clear()) for layer in layers]
    handles += [layer.register_forward_hook(hook(found)) for layer, found in zip(layers, noted, strict=True)]
    try:
        with top_k:
            yield lambda: [_join(choices) for choices in noted]
    finally:
        for handle in handles:
            handle.remove()


def _join(choices: list[ExpertChoice]) -> ExpertChoice | None:
    if not choices:
        return None
    groups = [(c.group_scores, c.groups_taken) for c in choices]
    joined = [
        torch.cat([part for part in parts if part is not None])
        for parts in zip(*groups, strict=True)
        if parts[0] is not None
    ]
    return ExpertChoice(torch.cat([c.scores for c in choices]), torch.cat([c.taken for c in choices]), *joined)


@contextmanager
def following(layer: nn.Module, choice: ExpertChoice | None, on_tie: Callable[[Tie], object]) -> Iterator[None]:
    """Our layer with transformers' `choice` where it is a tie, which `on_tie` is told of. Calls go from row to row."""
    row = 0

    def ties_of(router: Any, x: Tensor, chosen: Tensor) -> list[tuple[Tie, Tensor]]:
        nonlocal row
        if choice is None:
            return []
        ties = settle(choice, chosen, row)
        found = [(replace(tie, position=tie.position - row), choice.taken[tie.position]) for tie in ties]
        for tie in ties:
            on_tie(tie)
        row += len(chosen)
        return found

    with _overruling(layer, ties_of):
        yield


@contextmanager
def agreeing_with(
    layer: nn.Module, taken: Tensor | None, on_tie: Callable[[Tie], object], within: float = TIE
) -> Iterator[None]:
    """Our layer with the experts that a package has `taken` (S, top), -1 where it took none, where that is a tie by our
    router's own scores."""

    def ties_of(router: Any, x: Tensor, chosen: Tensor) -> list[tuple[Tie, Tensor]]:
        if taken is None or taken.shape != chosen.shape:
            return []
        others = torch.where(taken < 0, chosen, taken)
        ties = settle(_judged(router, x, chosen), others, within=within)
        for tie in ties:
            on_tie(replace(tie, names=("torch", "the package")))
        return [(tie, others[tie.position]) for tie in ties]

    with _overruling(layer, ties_of):
        yield


def _judged(router: Any, x: Tensor, chosen: Tensor) -> ExpertChoice:
    """What our router chose, with all of its scores."""
    scores = router.values(router.logits(x))[0, :, 0].T  # (S, E)
    groups = router.spec.groups if isinstance(router, ScoreRouter) else 1
    if groups == 1 or router.spec.top_groups == groups:
        return ExpertChoice(scores, chosen)
    sums = scores.unflatten(1, (groups, -1)).topk(2, 2)[0].sum(2)
    return ExpertChoice(scores, chosen, sums, sums.topk(router.spec.top_groups, 1)[1])


def has_routers(module: nn.Module) -> bool:
    """Whether a module of ours chooses experts anywhere."""
    return bool(_routers(module))


def _routers(module: nn.Module) -> list[Router | ScoreRouter]:
    return [inside for inside in module.modules() if isinstance(inside, Router | ScoreRouter)]


@contextmanager
def _overruling(layer: nn.Module, ties_of: Callable[[Any, Tensor, Tensor], list[tuple[Tie, Tensor]]]) -> Iterator[None]:
    """Our layer with other experts where `ties_of` (router, x, the experts chosen (S, top)) says which."""
    routers = _routers(layer)

    def overrule(router: Any, given: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        chosen = output[1][0, :, 0].T.clone()  # (S, top)
        found = ties_of(router, given[0], chosen.clone())
        for tie, experts in found:
            chosen[tie.position] = experts
        if not found:
            return output
        numbers = chosen.T[None, :, None]  # (1, top, 1, S)
        return router.weigh(router.logits(*given), numbers), numbers

    handles = [router.register_forward_hook(overrule) for router in routers[-1:]]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
