"""Our Decoder with one layer filled at a time: the same modules that are converted, at one layer's memory."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn

from coreai_recipes.checkpoint.base import Checkpoint
from coreai_recipes.decoder.filling import Weight, bind_weights, fill_from
from coreai_recipes.decoder.low_rank import Pair, beside_matrices
from coreai_recipes.decoder.model import build_decoder, empty
from coreai_recipes.decoder.streaming import started
from coreai_recipes.primitives.cache import NoCache
from coreai_recipes.primitives.layer import PLAIN, Form
from coreai_recipes.primitives.layer_inputs import LayerInputs
from coreai_recipes.primitives.per_layer import slice_of
from coreai_recipes.primitives.projection import with_low_rank
from coreai_recipes.recipe.schema import Recipe

Agreeing = Callable[[nn.Module], AbstractContextManager[None]]


class StreamedDecoder:
    """A whole sequence through the Decoder, layer by layer, with a checkpoint's weights or given ones.

    `low_rank` are the factors A (r, in) and B (out, r) of products beside its matrices, as `layers.0.attention.q`.
    """

    def __init__(
        self,
        recipe: Recipe,
        weights: Checkpoint | Mapping[str, Weight],
        form: Form = PLAIN,
        low_rank: Mapping[str, Pair] | None = None,
    ) -> None:
        self._low_rank = low_rank or {}
        self.decoder = build_decoder(recipe, form)
        self.weights: Mapping[str, Weight] = (
            bind_weights(self.decoder, weights) if isinstance(weights, Checkpoint) else weights
        )
        self._inputs: dict[str, LayerInputs] = {}
        self._per_layer: Tensor | None = None
        self._caches: dict[str, NoCache] = {}  # the last one of each kind, which other layers may share

    def begin(self, input_ids: Sequence[int]) -> Tensor:
        """The first hidden state (1, C, 1, S); the layers that follow see these tokens."""
        with started(self.decoder, self.weights, [input_ids]) as start:
            x, self._inputs, self._per_layer = start(0)
        self._caches = {}
        return x

    def embed(self, token: Tensor) -> Tensor:
        """The scaled embedding (1, C, 1, 1) of one token (1, 1), of which the first layer, and a draft, is given."""
        table = self.decoder.embedding
        meta = table.weight
        table.weight = nn.Parameter(self._read_rows("embedding.weight", [int(token)]), requires_grad=False)
        with torch.inference_mode():
            x: Tensor = table(torch.zeros(1, 1, dtype=torch.int64))
        table.weight = meta
        return x

    def run_layer(
        self,
        index: int,
        x: Tensor,
        agreeing: Agreeing = lambda layer: nullcontext(),
    ) -> dict[str, Tensor]:
        """x (1, C, 1, S) through layer `index`: query, key, attention and output, each (S, features).

        It runs in the context of `agreeing`, which may make its choice among equal experts (`ties`).
        """
        layer = self.decoder.layers[index]
        found: dict[str, Tensor] = {}
        attention: nn.Module = layer.attention  # type: ignore[assignment]
        watched = {"attention": attention, **_places(attention, "rotated_query")}
        owner = self.decoder.front.owners[layer.kind]  # type: ignore[index]
        if owner == layer.kind:
            watched |= _places(attention, "rotated_key")
            self._caches[owner] = NoCache()
        of_layer = None if self._per_layer is None else slice_of(self._per_layer, torch.tensor([index]))
        with self._filled(index), _watch(watched, found), agreeing(layer), torch.inference_mode():
            given = self._inputs[layer.kind]  # type: ignore[index]
            output = layer(x, given, self._caches[owner], of_layer)
            found["output"] = by_position(output)
        return found

    def run(
        self,
        input_ids: Sequence[int],
        on_hidden: Callable[[int, Tensor], None],
        agreeing: Callable[[int], Agreeing] = lambda index: lambda layer: nullcontext(),
    ) -> Tensor:
        """All layers on our own hidden states: `on_hidden(i, x)` is told what goes into layer i (S, C), and at the end
        what comes out of the last. Returns the logits (S, V)."""
        x = self.begin(input_ids)
        on_hidden(0, by_position(x))
        for index in range(len(self.decoder.layers)):
            output = self.run_layer(index, x, agreeing(index))["output"]
            on_hidden(index + 1, output)
            x = channels_first(output, self.decoder.recipe.model.streams)
        return self.logits(x)

    def logits(self, x: Tensor) -> Tensor:
        """Logits (S, V) of the last hidden state x (1, C, 1, S), the head in blocks of rows."""
        tied = self.decoder.recipe.model.head.tied
        binding = self.weights["embedding.weight" if tied else "head.weight"]
        head, bias = self.decoder.head, self.weights.get("head.bias")
        fill_from(self.decoder.norm, self.weights, "norm.")
        for name, part in head.named_children():
            fill_from(part, self.weights, f"head.{name}.")
        biases = None if bias is None else bias.read().float()
        pieces: list[Tensor] = []
        row = 0
        with torch.inference_mode():
            x = self.decoder.norm(x)
            for block in binding.blocks():
                weight = block.float()[..., None, None]
                pieces.append(head(x, weight, None if biases is None else biases[row : row + len(block)]))
                row += len(block)
        for part in (self.decoder.norm, *head.children()):
            empty(part)
        return torch.cat(pieces, -1)[0]

    @contextmanager
    def _filled(self, index: int) -> Iterator[None]:
        layer = self.decoder.layers[index]
        fill_from(layer, self.weights, prefix := f"layers.{index}.")
        with with_low_rank(layer, beside_matrices(self._low_rank, prefix)):
            yield
        empty(layer)

    def _read_rows(self, name: str, rows: Sequence[int]) -> Tensor:
        return self.weights[name].read_rows(rows).float()


def _places(attention: nn.Module, name: str) -> dict[str, nn.Module]:
    """The place of that name where queries or keys can be looked at, by what they are; a convolution has none."""
    found = dict(attention.named_children()).get(name)
    return {} if found is None else {name.removeprefix("rotated_"): found}


def by_position(x: Tensor) -> Tensor:
    """(N, C, 1, S) -> (S, N * C): positions first, as transformers has them."""
    return x.permute(3, 0, 1, 2).reshape(x.shape[3], -1)


def channels_first(x: Tensor, streams: int = 1) -> Tensor:
    """(S, N * C) -> (N, C, 1, S) of N streams, as the engine has it."""
    return x.t().reshape(streams, -1, 1, x.shape[0]).contiguous()


@contextmanager
def _watch(modules: dict[str, nn.Module], found: dict[str, Tensor]) -> Iterator[None]:
    """Note what each module gives, by position, under its name."""

    def note(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        return lambda module, given, output: found.__setitem__(name, by_position(output))

    handles = [module.register_forward_hook(note(name)) for name, module in modules.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
