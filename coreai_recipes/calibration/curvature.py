"""What an error in a matrix costs, as far as one pass forward and back says.

KL divergence of a small error E is half the expectation of (g . E x)^2 over tokens, where x goes into the matrix and g
is the gradient at its output of the log probability of a token that the model itself draws (the Fisher information).
Outputs are taken as uncorrelated, and their squared gradients as a product of one number for each output and one for
each token: sum over o of a_o e_o H e_o^T, H being the sum of b_t x_t x_t^T. So a sink of attention, whose input is huge
and on which nothing depends, has the little weight that it deserves.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from coreai_recipes.calibration.statistics import Moments, Statistics

MULTIPLICATIONS = (torch.matmul, Tensor.matmul, Tensor.__matmul__)


class Watched(Protocol):
    """What is told of a matrix: inputs x (I, T) or (experts, I, T), of which one may be all experts', and squared
    gradients (O, T) or (experts, O, T) of some tokens."""

    def add(self, x: Tensor, squares: Tensor) -> None: ...


W = TypeVar("W", bound=Watched)
Watcher = Callable[[str, int, int], W | None]  # what watches a matrix by its name, rows in all, and width


class Curvature:
    """Of one matrix, whose rows are `rows` in all (of all experts) and `width` wide; windows are added."""

    def __init__(self, rows: int, width: int) -> None:
        self.of_rows = torch.zeros(rows, dtype=torch.float64)
        self.products = torch.zeros(width, width, dtype=torch.float64)  # H, weighted
        self.moments = Moments(width)  # each token the same, as what a matrix is fitted to
        self.total = 0.0

    @classmethod
    def of(cls, name: str, rows: int, width: int) -> "Curvature":
        """As a `Watcher` of every matrix."""
        return cls(rows, width)

    def add(self, x: Tensor, squares: Tensor) -> None:
        rows = squares.sum(-1, dtype=torch.float64)
        self.of_rows += rows.reshape(-1)
        self.total += float(rows.sum())
        tokens = squares.sum(-2)  # (T) or (experts, T)
        if x.dim() == 3 and x.shape[0] != 1:
            x, tokens = x.movedim(0, -2).flatten(-2), tokens.reshape(-1)
        else:
            x, tokens = x.reshape(-1, x.shape[-1]), tokens.reshape(-1, x.shape[-1]).sum(0)
        self.products += (x * tokens) @ x.t()
        self.moments.add(x, _in_turn)

    def statistics(self, looked_up: bool) -> Statistics:
        """What a fit takes of the inputs, which are used up."""
        found = Statistics(self.moments.hessian(), self.moments.tokens)
        return found.with_lookups() if looked_up else found

    def cost(self, error: Tensor, positions: int) -> float:
        """Predicted nats at a position, of an error (..., I) in the matrix; `positions` were added in all."""
        if self.total == 0:
            return 0.0
        products, share = self.products.float(), (self.of_rows / self.total).float()
        found = 0.0
        for rows, shares in zip(_split(error.flatten(0, -2)), _split(share), strict=True):
            found += float(((rows @ products) * rows).sum(1).dot(shares))
        return found / 2 / positions


class ErrorCost:
    """What an error (..., O, I) of one matrix costs, where it is known before the pass: as `Curvature.cost`, without H,
    whose numbers are the square of the inputs'. The errors of an expert meet its own inputs alone."""

    def __init__(self, error: Tensor) -> None:
        self.error = error.flatten(0, -3) if error.dim() > 2 else error[None]  # (experts, O, I)
        self._of_rows = torch.zeros(self.error.shape[:2], dtype=torch.float64)
        self._weighted = torch.zeros_like(self._of_rows)  # (E x)^2, each token with its weight

    def add(self, x: Tensor, squares: Tensor) -> None:
        inputs = x.reshape(-1, *x.shape[-2:])
        of_each = squares.reshape(*self._of_rows.shape, squares.shape[-1])  # (experts, O, T)
        self._of_rows += of_each.sum(-1, dtype=torch.float64)
        for expert, (error, gradients) in enumerate(zip(self.error, of_each, strict=True)):
            tokens = gradients.sum(0)
            rows = 0
            for block in _split(error):
                outputs = block @ inputs[min(expert, len(inputs) - 1)]
                self._weighted[expert, rows : rows + len(block)] += (outputs.square_() @ tokens).double()
                rows += len(block)

    def cost(self, positions: int) -> float:
        """Predicted nats at a position; `positions` were added in all."""
        totals = self._of_rows.sum(1, keepdim=True)
        shares = torch.where(totals > 0, self._of_rows / totals, 0.0)
        return float((shares * self._weighted).sum()) / 2 / positions


def _in_turn(functions: Iterable[Callable[[], None]]) -> None:
    for function in functions:
        function()


def _split(tensor: Tensor, rows: int = 8192) -> list[Tensor]:
    return list(torch.split(tensor, rows))


class Watching(TorchFunctionMode, Generic[W]):
    """Within its context, what matrices multiply is noted when it comes, and squared gradients when the backward pass
    comes by. `names` are those of matrices by identity, and `watcher` makes what is told of one, or None."""

    def __init__(self, names: Mapping[int, str], found: dict[str, W], watcher: Watcher[W]) -> None:
        super().__init__()
        self._names, self._found, self._watcher = names, found, watcher

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if func is torch.conv2d and id(args[1]) in self._names:
            self._watch(self._names[id(args[1])], args[1], args[0].flatten(2)[0], output, conv=True)
        elif func in MULTIPLICATIONS and id(args[0]) in self._names:
            self._watch(self._names[id(args[0])], args[0], args[1], output, conv=False)
        return output

    def _watch(self, name: str, weight: Tensor, x: Tensor, output: Tensor, conv: bool) -> None:
        if name not in self._found:
            width = weight.shape[1] if conv else weight.shape[-1]
            made = self._watcher(name, weight.numel() // width, width)
            if made is None:
                return
            self._found[name] = made
        if not output.requires_grad:
            return
        inputs = x.detach()

        def note(gradient: Tensor) -> None:
            squares = (gradient.flatten(2)[0] if conv else gradient).square()
            with torch.no_grad():
                self._found[name].add(inputs, squares)

        output.register_hook(note)  # type: ignore[no-untyped-call]
