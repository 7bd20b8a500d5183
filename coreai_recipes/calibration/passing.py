"""A text through the decoder, layer after layer with one in memory, and what comes into each matrix of it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product

import torch
from torch import Tensor, nn

from coreai_recipes.calibration.drafting import Drafting
from coreai_recipes.calibration.gathering import Gathering
from coreai_recipes.calibration.statistics import Moments, Statistics
from coreai_recipes.calibration.threads import Threads
from coreai_recipes.checkpoint.base import Checkpoint
from coreai_recipes.decoder.filling import Weight, bind_weights, fill_from
from coreai_recipes.decoder.model import Decoder, build_decoder, empty, weights_form
from coreai_recipes.decoder.streaming import started
from coreai_recipes.primitives.cache import NoCache
from coreai_recipes.primitives.layer import Layer
from coreai_recipes.primitives.layer_inputs import LayerInputs
from coreai_recipes.primitives.per_layer import slice_of
from coreai_recipes.recipe.schema import Recipe
from coreai_recipes.storage.memory import return_freed_memory

TOGETHER = 8  # windows whose inputs are held at once, however many threads there are

Windows = Sequence[Sequence[int]]  # token ids, all of one length


@dataclass(frozen=True)
class Gathered:
    """What was found of some matrices by parameter name; those of one input share their Statistics."""

    place: str  # `layers.3`, `head`, `draft`
    statistics: Mapping[str, Statistics]


def folded_decoder(recipe: Recipe) -> Decoder:
    """The decoder whose weights stand in the order of the exported form."""
    return build_decoder(recipe, weights_form(recipe))


class TextPass:
    """The pass over `windows`; `weights` are those of `folded_decoder` by name, and of the recipe's draft where it has
    a checkpoint."""

    def __init__(
        self,
        recipe: Recipe,
        checkpoint: Checkpoint,
        windows: Windows,
        threads: Threads,
        draft: Checkpoint | None = None,
    ) -> None:
        self.decoder = folded_decoder(recipe)
        self.drafting = None if draft is None else Drafting(recipe, draft)
        self.weights: dict[str, Weight] = {**bind_weights(self.decoder, checkpoint)}
        if self.drafting is not None:
            self.weights |= self.drafting.weights
        self.windows, self.threads = windows, threads

    def run(self) -> Iterator[Gathered]:
        """Everything that multiplies, in running order. A layer's parameters are filled while its turn lasts."""
        states: list[Tensor] = [torch.empty(0)] * len(self.windows)
        per_layers: list[Tensor | None] = [None] * len(self.windows)
        inputs: dict[str, LayerInputs] = {}

        def begin(window: int) -> None:
            states[window], of_window, per_layers[window] = start(window)
            inputs.update(of_window)  # of all windows the same

        with started(self.decoder, self.weights, self.windows) as start:
            before = self._of(self.decoder, ("embedding.", "per_layer."))
            yield Gathered("front", self._gather(before, begin))
        embedded = [] if self.drafting is None else list(states)
        caches: dict[str, list[NoCache]] = {}
        owners = self.decoder.front.owners
        shared = {owner for name, owner in owners.items() if owner != name}
        shared |= self.drafting.owners if self.drafting is not None else set()
        for index, layer in enumerate(self.decoder.stack):
            owner = owners[layer.kind]
            if owner == layer.kind:
                caches[owner] = [NoCache() for _ in self.windows]
            fill_from(layer, self.weights, f"layers.{index}.")

            def run(window: int, layer: Layer = layer, index: int = index, owner: str = owner) -> None:
                own = per_layers[window]
                slice_ = None if own is None else slice_of(own, torch.tensor([index]))
                states[window] = layer(states[window], inputs[layer.kind], caches[owner][window], slice_)

            yield Gathered(f"layers.{index}", self._gather(self._of(layer, ("",), f"layers.{index}."), run))
            if owner not in shared:
                del caches[owner]
            empty(layer)
            return_freed_memory()
        yield Gathered("head", self._run_head(states))
        if self.drafting is not None:
            yield Gathered("draft", self._run_draft(self.drafting, embedded, states, caches))

    def _gather(self, names: dict[int, str], *runs: Callable[[int], object]) -> dict[str, Statistics]:
        """What comes into the matrices of `names` while each of `runs` is called with the number of each window."""

        def gather(run: Callable[[int], object], window: int) -> Gathering:
            found = Gathering(names)
            with torch.inference_mode(), found:
                run(window)
            return found

        moments: dict[str, Moments] = {}
        taken: dict[str, str] = {}
        for run, first in product(runs, range(0, len(self.windows), TOGETHER)):
            group = range(first, min(first + TOGETHER, len(self.windows)))
            found = list(self.threads.map(partial(gather, run), group))
            taken |= found[0].taken
            parts = [each.inputs for each in found]
            del found  # what was held beside them
            for name in list(parts[0]):
                inputs = torch.cat([each.pop(name) for each in parts], 1)
                moments.setdefault(name, Moments(len(inputs))).add(inputs, self.threads.run)
                del inputs  # of 12,288 channels, eight windows are 0.2 GB
        statistics = {name: Statistics(each.hessian(), each.tokens) for name, each in moments.items()}
        return_freed_memory()
        return {name: statistics[first] for name, first in taken.items()}

    def _of(self, module: nn.Module, prefixes: tuple[str, ...], name: str = "") -> dict[int, str]:
        return {id(p): name + own for own, p in module.named_parameters() if own.startswith(prefixes)}

    def _run_head(self, states: list[Tensor]) -> dict[str, Statistics]:
        """Of the head's matrix, which stands in for by one row of zeros, and of its projection."""
        decoder = self.decoder
        head, tied = decoder.head, decoder.recipe.model.head.tied
        table = self.weights["embedding.weight" if tied else "head.weight"]
        row = table.read_rows([0]).float()[..., None, None].zero_()
        bias = None if self.weights.get("head.bias") is None else torch.zeros(1)
        fill_from(decoder.norm, self.weights, "norm.")
        for name, part in head.named_children():
            fill_from(part, self.weights, f"head.{name}.")
        names = {id(row): "embedding.weight" if tied else "head.weight"}
        names |= {id(p): f"head.{name}" for name, p in head.named_parameters() if "." in name}
        found = self._gather(names, lambda window: head(decoder.norm(states[window]), row, bias))
        for part in (decoder.norm, *head.children()):
            empty(part)
        if tied:
            found["embedding.weight"] = found["embedding.weight"].with_lookups()
        return found

    def _run_draft(
        self,
        drafting: Drafting,
        embedded: list[Tensor],
        states: list[Tensor],
        caches: Mapping[str, Sequence[NoCache]],
    ) -> dict[str, Statistics]:
        norm = self.decoder.norm
        fill_from(norm, self.weights, "norm.")
        with torch.inference_mode():
            hidden = [norm(each) for each in states]
        empty(norm)
        step, names = drafting.begin(embedded, hidden, caches)
        found = self._gather(names, *(partial(step, number) for number in range(drafting.steps)))
        drafting.end()
        return found
