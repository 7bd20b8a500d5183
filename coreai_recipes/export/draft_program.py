"""The function of a draft, whose layers read the states of its target."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from coreai_recipes.decoder.draft import Draft, step_names
from coreai_recipes.decoder.stack import StackModule
from coreai_recipes.export.draft_fragments import (
    draft_front_fragment,
    draft_head_fragment,
    draft_layer_fragment,
    draft_start_fragment,
    joining_fragment,
)
from coreai_recipes.export.fragments import Fragment, Port, embedding_ports, state_names
from coreai_recipes.export.head_fragments import choice_fragment
from coreai_recipes.export.linking import Linker, Models, Numbers
from coreai_recipes.export.reporting import Signature
from coreai_recipes.export.stack_program import StackProgram, give, link_head
from coreai_recipes.storage.chunks import Chunk


class DraftProgram(StackProgram):
    """One function, which is given the table of the `target`."""

    def __init__(self, draft: Draft, target: StackModule, chunk: Chunk) -> None:
        self.draft, self.target, self.recipe, self.chunk = draft, target, draft.recipe, chunk

    @property
    def functions(self) -> Iterator[str]:
        yield self.draft.of.key

    def fragments(self) -> Iterator[Fragment]:
        draft = self.draft
        yield from (draft_front_fragment(draft), self._start(), draft_head_fragment(draft))
        yield from map(self._layer, dict.fromkeys(draft.spec.layer_kinds))
        yield from self._choices()
        if draft.spec.steps > 1:
            yield joining_fragment(draft.spec.steps)

    def link(self, function: str, models: Models, linker: Linker, numbers: Numbers) -> Signature:
        """Where a call drafts several tokens, each step is given the token and hidden state of the step before it."""
        draft = self.draft
        front, start, head = draft_front_fragment(draft), self._start(), draft_head_fragment(draft)
        inputs = {name: port for name, port in start.inputs.items() if name not in start.parameters} | front.inputs
        if self.recipe.export.is_functional:
            inputs |= self._read
        states = self.declare(inputs, linker)
        linker.append(models[front.name], "front_", {name: name for name in (*front.inputs, *front.outputs)}, {})
        steps, choices = draft.spec.steps, self._choices()
        given = {leaf: linker.add_integers(leaf, found) for leaf, found in self._numbers(numbers)}
        looked_up = embedding_ports(self.recipe, 1)
        names, outputs = {name: name for name in (*looked_up, "last_hidden")}, dict[str, Port]()
        for step, (logits, hidden) in enumerate(step_names(steps)):
            at = f"step_{step}_" if steps > 1 else ""
            linker.append(models[start.name], f"{at}start_", {**names, "x": f"{at}hidden_0"}, start.parameters)
            for index, kind in enumerate(draft.spec.layer_kinds):
                fragment, state = self._layer(kind), self.chunk.states[draft.owner(kind)]
                names = {
                    "x": f"{at}hidden_{index}",
                    "y": f"{at}hidden_{index + 1}",
                    "slot": linker.add_integer(f"slot_{index}", state.at(state.layers - 1)),
                    **{port: f"{port}_{kind}" for port in draft.ports(kind)},
                    **state_names(state),
                }
                parameters = {
                    alias: f"{draft.of.prefix}layers.{index}.{name}" for alias, name in fragment.parameters.items()
                }
                linker.append(models[fragment.name], f"{at}layer_{index}_", names, parameters)
            names = {"x": f"{at}hidden_{len(draft.spec.layer_kinds)}", "logits": logits, "hidden": hidden, **given}
            outputs = link_head(head, names, choices, models, linker, at)
            names = {"input_ids": f"{at}ids", "last_hidden": hidden}
        if steps > 1:
            joining = joining_fragment(steps)
            linker.append(
                models[joining.name], "joining_", {name: name for name in (*joining.inputs, *joining.outputs)}, {}
            )
            outputs |= joining.outputs
        return Signature(inputs, give(outputs, linker), states)

    def _numbers(self, numbers: Numbers) -> Iterator[tuple[str, NDArray[np.int32]]]:
        """The draft's own, by the head's names for them."""
        for name in self.draft.whole_numbers:
            yield name.rpartition(".")[2], numbers[self.draft.of.prefix + name]

    @property
    def _read(self) -> dict[str, Port]:
        """Those of the package's caches that its layers read."""
        read = {name for kind in self.draft.spec.layer_kinds for name in self._names_of_state(kind).values()}
        return {name: port for name, port in self.caches.items() if name in read}

    def _names_of_state(self, kind: str) -> dict[str, str]:
        return state_names(self.chunk.states[self.draft.owner(kind)])

    def _layer(self, kind: str) -> Fragment:
        return draft_layer_fragment(self.draft, kind, self.chunk.states[self.draft.owner(kind)])

    def _start(self) -> Fragment:
        return draft_start_fragment(self.draft, self.target)

    def _choices(self) -> list[Fragment]:
        """A step takes the token that the step before it chose, within the package."""
        vocab_size = self.draft.spec.vocab_size
        return [choice_fragment(1, vocab_size)] if self.draft.spec.steps > 1 else self.choices(1, vocab_size)
