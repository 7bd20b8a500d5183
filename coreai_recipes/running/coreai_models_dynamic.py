"""Assets for Apple's runner of coreai-models on macOS: called as docs/bundle.md says, and as that runner calls them."""

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from coreai_recipes.hosts import coreai_models_dynamic as theirs
from coreai_recipes.hosts.coreai_models import Ports, Settings
from coreai_recipes.manifest.schema import Function, Manifest
from coreai_recipes.running.coreai_models import Answers, asked_of, inputs_of_call, own_functions_of, own_logits

if TYPE_CHECKING:
    from torch import Tensor

    from coreai_recipes.running.coreai import CoreAIProgram, States
    from coreai_recipes.running.engine import Watch


def runner_inputs(token_ids: "Tensor", position: int) -> "dict[str, Tensor]":
    """Of a call with these tokens (S,) from `position` on."""
    import torch

    positions = torch.arange(position + len(token_ids), dtype=torch.int32)
    return {theirs.IDS: token_ids.to(torch.int32)[None], theirs.POSITIONS: positions[None]}


class OwnCalls:
    """An engine of `main` as one of `decode` and `prefill`, on caches that hold the context from the beginning."""

    def __init__(self, engine: "CoreAIProgram", context: int, vocab_size: int) -> None:
        self._engine, self._context, self._vocab_size = engine, context, vocab_size

    def function(self, name: str) -> "OwnFunction":
        return OwnFunction(self._engine, name, self._context, self._vocab_size)

    def make_state(self) -> "States":
        """Without the axis of one batch, as a manifest has them."""
        from coreai_recipes.running.coreai import States

        made = self._engine.make_state(self._context)
        return States({name: tensor.squeeze(1) for name, tensor in made.items()}, made.number)


class OwnFunction:
    """One call of as many tokens as are real."""

    overflowed: Collection[str] = ()
    nans: Collection[str] = ()

    def __init__(self, engine: "CoreAIProgram", name: str, context: int, vocab_size: int) -> None:
        self._engine, self._name, self._context, self._vocab_size = engine, name, context, vocab_size

    @property
    def inputs(self) -> Ports:
        """What it takes: dtype and shape by name."""
        return inputs_of_call(1 if self._name == "decode" else theirs.OPEN)

    def __call__(self, inputs: "Mapping[str, Any]", state: Any, watch: "Watch | None" = None) -> "dict[str, Tensor]":
        tokens, position, count = asked_of(inputs, self._context)
        main = self._engine.function(theirs.MAIN)
        outputs = main(runner_inputs(tokens[:count], position), state, watch)
        return {"logits": own_logits(outputs[theirs.LOGITS][0, -1], self._vocab_size)}


def own_functions(manifest: Manifest) -> dict[str, Function]:
    """The functions of a bundle as `OwnCalls` has them."""
    return own_functions_of(manifest, (1, manifest.functions[theirs.MAIN].query))


class Player(Answers):
    """What the runner does with a dynamic asset, in its order: CoreAISequentialEngine.swift.

    `settings` are those of metadata.json, and nothing else of a bundle is looked at.
    """

    def __init__(self, engine: "CoreAIProgram", settings: Settings) -> None:
        if theirs.MAIN not in engine.signatures:
            raise ValueError(f"there is no function {theirs.MAIN}")
        super().__init__(engine, settings)
        signature = engine.signatures[theirs.MAIN]
        # by their order, whatever they are called
        (self._ids, self._positions), (self._logits, *_) = signature["inputs"], signature["outputs"]
        if not 2 <= len(signature["states"]) <= 4:
            raise ValueError(f"{len(signature['states'])} states, and the runner takes 2 to 4")
        self.capacity = min(theirs.FIRST_ROWS, settings.context)
        self._state = engine.make_state(self.capacity)
        self.calls: list[tuple[int, int]] = []  # the position of each, and its tokens

    def next_logits(self, text: Sequence[int]) -> "Tensor":
        """Of the token after `text`, (V,), after one call for what is new, or for each batch of much."""
        new = list(text[len(self._history) :])
        batch = theirs.BATCH if len(new) > theirs.WHOLE_PROMPT else len(new)
        for start in range(0, len(new), batch):
            logits = self._call(new[start : start + batch])
        return logits[0, -1]

    def _call(self, token_ids: list[int]) -> "Tensor":
        import torch

        position = len(self._history)
        self._grow(position + len(token_ids))
        self.calls.append((position, len(token_ids)))
        given = runner_inputs(torch.tensor(token_ids), position)
        named = {self._ids: given[theirs.IDS], self._positions: given[theirs.POSITIONS]}
        self._history += token_ids
        return self._engine.function(theirs.MAIN)(named, self._state)[self._logits]

    def _grow(self, positions: int) -> None:
        """Caches twice as long, until they hold so many, with what was in them."""
        if positions <= self.capacity:
            return
        if positions > self._settings.context:
            raise ValueError(f"{positions} positions, and the context has {self._settings.context}")
        before = {name: tensor.clone() for name, tensor in self._state.items()}
        while self.capacity < positions:
            self.capacity = min(2 * self.capacity, self._settings.context)
        self._state = self._engine.make_state(self.capacity)
        for name, tensor in before.items():
            self._state[name][:, :, :, : tensor.shape[3]] = tensor
