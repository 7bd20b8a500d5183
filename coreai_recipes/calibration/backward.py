"""One pass of a text forward and back through the Decoder, with one layer in memory."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic

import torch
from torch import Tensor, nn

from coreai_recipes.calibration.curvature import W, Watcher, Watching
from coreai_recipes.checkpoint.base import Checkpoint
from coreai_recipes.decoder.filling import bind_weights, fill_from
from coreai_recipes.decoder.model import PER_LAYER_TABLE, Decoder, empty, rows_of_tokens
from coreai_recipes.primitives.cache import NoCache
from coreai_recipes.primitives.layer_inputs import LayerInputs
from coreai_recipes.primitives.per_layer import slice_of
from coreai_recipes.weights.binding import Binding

SEED = 20240229
HEAD_NUMBERS = 1 << 25  # logits that are held at once, with their gradients
STEP = "gradients"


@dataclass
class Pass:
    """What is kept of a window between the two ways: what goes into each layer, what layers share, gradients."""

    ids: Tensor
    inputs: dict[str, LayerInputs] = field(default_factory=dict)
    hidden: list[Tensor] = field(default_factory=list)
    per_layer: Tensor | None = None
    shared: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)  # keys and values by the layer that has them
    of_hidden: Tensor | None = None  # gradients, from here on
    of_per_layer: Tensor | None = None
    of_shared: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)


class _Given(NoCache):
    """The keys and values of another layer."""

    def __init__(self, given: tuple[Tensor, Tensor]) -> None:
        super().__init__()
        self._given = given


class Backward(Generic[W]):
    """The pass of `decoder`, which is empty, over `windows` of token ids.

    `run` gives by name what `watcher` makes of each matrix, as `Curvature.of`, in the decoder's own order of rows and
    columns, from the head down to the front; each lasts until the next is asked for.

    Held are the inputs of every layer for all windows, and one layer, or the head's table, in float32.
    """

    def __init__(
        self,
        decoder: Decoder,
        checkpoint: Checkpoint,
        windows: Sequence[Sequence[int]],
        watcher: Watcher[W],
        on_progress: Callable[[str, int, int], None] | None = None,
    ) -> None:
        self.decoder = decoder
        self.weights = bind_weights(self.decoder, checkpoint)
        self.watcher = watcher
        self.positions = sum(map(len, windows))
        self._passes = [Pass(torch.tensor([list(window)])) for window in windows]
        self._progress, self._done = on_progress, 0
        # by layer that shares another's keys and values: whose
        self._owners: dict[int, int] = {}
        # of each window its tokens, and the squared gradients (S, C) of the rows that were looked up
        self.of_lookups: list[tuple[Tensor, Tensor]] = []

    def run(self) -> Iterator[tuple[str, dict[str, W]]]:
        layers = self.decoder.stack
        for each in self._passes:
            self._start(each)
        for index in range(len(layers)):
            with torch.no_grad(), self._filled(index):
                for each in self._passes:
                    each.hidden.append(self._layer(index, each, each.hidden[index])[0])
            self._note()
        yield "head", self._head()
        for index in reversed(range(len(layers))):
            found: dict[str, W] = {}
            with self._filled(index) as names:
                for each in self._passes:
                    with Watching(names, found, self.watcher):
                        self._layer_back(index, each)
            self._note()
            yield f"layers.{index}", found
        yield "front", self._front()

    def lookup_cost(self, error: Tensor) -> float:
        """Predicted nats at a position of an error in the table (V, C), where its rows are looked up."""
        found = sum(float((squares * error[ids].square()).sum()) for ids, squares in self.of_lookups)
        return found / 2 / self.positions

    def _filled(self, index: int) -> "_Filled":
        return _Filled(self.decoder.layers[index], self.weights, f"layers.{index}.")

    def _start(self, each: Pass) -> None:
        with torch.no_grad(), self._front_of(each) as (x, inputs, per_layer, _):
            each.hidden, each.inputs, each.per_layer = [x], inputs, per_layer
            each.of_per_layer = None if per_layer is None else torch.zeros_like(per_layer)

    def _cache(self, index: int, each: Pass) -> tuple[NoCache, tuple[Tensor, Tensor] | None]:
        """What the layer reads: its own, or another's as leaves of the graph."""
        kind = self.decoder.stack[index].kind
        if self.decoder.front.owners[kind] == kind:
            return NoCache(), None
        if index not in self._owners:
            kinds = self.decoder.recipe.model.layer_kinds
            owner = self.decoder.front.owners[kind]
            self._owners[index] = max(i for i in range(index) if kinds[i] == owner)
        keys, values = (part.detach().requires_grad_() for part in each.shared[self._owners[index]])
        return _Given((keys, values)), (keys, values)

    def _layer(
        self, index: int, each: Pass, x: Tensor, of_layer: Tensor | None = None
    ) -> tuple[Tensor, NoCache, object]:
        layer = self.decoder.stack[index]
        cache, leaves = self._cache(index, each)
        if of_layer is None and each.per_layer is not None:
            of_layer = slice_of(each.per_layer, torch.tensor([index]))
        output = layer(x, each.inputs[layer.kind], cache, of_layer)
        if leaves is None and self._is_shared(index):
            keys, values = cache.read()
            each.shared[index] = keys.detach(), values.detach()
        return output, cache, leaves

    def _is_shared(self, index: int) -> bool:
        kinds, owners = self.decoder.recipe.model.layer_kinds, self.decoder.front.owners
        return any(owners[kind] == kinds[index] != kind for kind in kinds[index + 1 :])

    def _layer_back(self, index: int, each: Pass) -> None:
        x = each.hidden.pop().detach().requires_grad_() if len(each.hidden) == index + 1 else None
        if x is None:
            raise RuntimeError("layers go back in order")
        of_layer = None
        if each.per_layer is not None:
            of_layer = slice_of(each.per_layer, torch.tensor([index])).detach().requires_grad_()
        with torch.enable_grad():
            output, cache, leaves = self._layer(index, each, x, of_layer)
            targets, gradients = [output], [each.of_hidden]
            if index in each.of_shared:
                targets += cache.read()
                gradients += each.of_shared.pop(index)
            torch.autograd.backward(targets, gradients)
        each.of_hidden = x.grad
        if of_layer is not None and of_layer.grad is not None and each.of_per_layer is not None:
            each.of_per_layer[index] += of_layer.grad.reshape(each.of_per_layer[index].shape)
        if isinstance(leaves, tuple):
            owner = self._owners[index]
            keys, values = (torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves)
            found = keys, values
            before = each.of_shared.get(owner)
            each.of_shared[owner] = found if before is None else (before[0] + found[0], before[1] + found[1])

    def _head(self) -> dict[str, W]:
        """Tokens are drawn, and their gradients go down to the last layer's output."""
        decoder, tied = self.decoder, self.decoder.recipe.model.head.tied
        name = "embedding.weight" if tied else "head.weight"
        table = self.weights[name].read().float()[..., None, None]
        bias = self.weights.get("head.bias")
        biases = None if bias is None else bias.read().float()
        found: dict[str, W] = {}
        names = {id(table): name}
        generator = torch.Generator().manual_seed(SEED)
        fill_from(decoder.norm, self.weights, "norm.")
        for part_name, part in decoder.head.named_children():
            fill_from(part, self.weights, f"head.{part_name}.")
            names |= {id(p): f"head.{part_name}.{own}" for own, p in part.named_parameters()}
        step = max(1, HEAD_NUMBERS // len(table))
        for each in self._passes:
            last = each.hidden.pop()
            gradients = []
            for piece in torch.split(last, step, 3):
                x = piece.detach().requires_grad_()
                with torch.enable_grad(), Watching(names, found, self.watcher):
                    logits = decoder.head(decoder.norm(x), table, biases)[0]
                    drawn = torch.multinomial(logits.detach().softmax(-1), 1, generator=generator)
                    torch.nn.functional.cross_entropy(logits, drawn[:, 0], reduction="sum").backward()  # type: ignore[no-untyped-call]
                gradients.append(x.grad)
            each.of_hidden = torch.cat(gradients, 3)  # type: ignore[arg-type]
        for part in (decoder.norm, *decoder.head.children()):
            empty(part)
        return found

    def _front(self) -> dict[str, W]:
        """The gradients reach the rows that were looked up, and what is computed of them before any layer."""
        found: dict[str, W] = {}
        for each in self._passes:
            with torch.enable_grad(), self._front_of(each, found) as (x, _, per_layer, rows):
                targets, gradients = [x], [each.of_hidden]
                if per_layer is not None:
                    targets.append(per_layer)
                    gradients.append(each.of_per_layer)
                torch.autograd.backward(targets, gradients)
                if rows.grad is not None:
                    self.of_lookups.append((each.ids[0], rows.grad.square()))
        return found

    def _front_of(self, each: Pass, found: dict[str, W] | None = None) -> "_Front[W]":
        return _Front(self, each, found)

    def _note(self) -> None:
        self._done += 1
        if self._progress is not None:
            self._progress(STEP, self._done, 2 * len(self.decoder.stack))


class _Filled:
    """A layer with its weights; gives the names of its matrices by identity."""

    def __init__(self, module: nn.Module, weights: Mapping[str, Binding], prefix: str) -> None:
        self._module, self._weights, self._prefix = module, weights, prefix

    def __enter__(self) -> dict[int, str]:
        fill_from(self._module, self._weights, self._prefix)
        return {id(p): self._prefix + name for name, p in self._module.named_parameters()}

    def __exit__(self, *_: object) -> None:
        empty(self._module)


class _Front(Generic[W]):
    """The front of a window with its weights: the table has a row for each position, which gradients reach."""

    def __init__(self, owner: Backward[W], each: Pass, found: dict[str, W] | None) -> None:
        self._owner, self._each, self._found = owner, each, found

    def __enter__(self) -> tuple[Tensor, dict[str, LayerInputs], Tensor | None, Tensor]:
        decoder, weights = self._owner.decoder, self._owner.weights
        ids, places = torch.unique(self._each.ids, return_inverse=True)
        rows = weights["embedding.weight"].read_rows(ids.tolist()).float()[places[0]]
        self._meta = decoder.embedding.weight
        decoder.embedding.weight = nn.Parameter(rows, requires_grad=torch.is_grad_enabled())
        names: dict[int, str] = {}
        for name, part in decoder.embedding.named_children():
            fill_from(part, weights, f"embedding.{name}.")
            names |= {id(p): f"embedding.{name}.{own}" for own, p in part.named_parameters()}
        table = None
        if decoder.per_layer is not None and decoder.per_layer_table is not None:
            fill_from(decoder.per_layer, weights, "per_layer.")
            names |= {id(p): f"per_layer.{own}" for own, p in decoder.per_layer.named_parameters()}
            held = rows_of_tokens(ids, decoder.per_layer_table.num_embeddings)
            table = weights[PER_LAYER_TABLE].read_rows(held.tolist()).float()[places]
        start, count = (torch.tensor([n], dtype=torch.int32) for n in (0, places.shape[1]))
        with Watching(names, {} if self._found is None else self._found, self._owner.watcher):
            call = decoder.front.call(places.shape[1], cached=False)
            x, inputs, per_layer = decoder.front(call, torch.arange(places.shape[1])[None], start, count, table)
        return x, inputs, per_layer, decoder.embedding.weight

    def __exit__(self, *_: object) -> None:
        decoder = self._owner.decoder
        decoder.embedding.weight = self._meta
        for part in decoder.embedding.children():
            empty(part)
        if decoder.per_layer is not None:
            empty(decoder.per_layer)
