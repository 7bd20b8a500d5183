"""A stack's functions: which fragments run in which, and how their names meet; what all stacks have in common."""

from abc import ABC, abstractmethod
from collections.abc import Iterable

from coreai_recipes.decoder.states import states_of
from coreai_recipes.export.fragments import FLOAT, Fragment, Port
from coreai_recipes.export.head_fragments import choice_fragment
from coreai_recipes.export.linking import Linker, Models, Numbers
from coreai_recipes.export.reporting import Signature
from coreai_recipes.recipe.schema import Recipe
from coreai_recipes.storage.chunks import Chunk


class StackProgram(ABC):
    """What a stack of a recipe becomes in the program of a package, `chunk`."""

    recipe: Recipe
    chunk: Chunk

    @property
    @abstractmethod
    def functions(self) -> Iterable[str]:
        """Their names."""

    @abstractmethod
    def fragments(self) -> Iterable[Fragment]:
        """Every fragment that they need."""

    @abstractmethod
    def link(self, function: str, models: Models, linker: Linker, numbers: Numbers) -> Signature:
        """One of them, linked from the converted `models` of its fragments; `numbers` are those parameters of a stack
        that stand in the program itself."""

    def choices(self, tokens: int, vocab_size: int) -> list[Fragment]:
        """What chooses the best token within the package, where the recipe asks for it."""
        return [choice_fragment(tokens, vocab_size)] if self.recipe.export.outputs == "ids" else []

    @property
    def caches(self) -> dict[str, Port]:
        """The keys and values that the package's own layers attend to, by name."""
        return {name: Port(FLOAT, state.shape) for name, state in states_of(self.chunk.states).items()}

    def declare(self, inputs: dict[str, Port], linker: Linker) -> dict[str, Port]:
        """Give a function its inputs, and the package's states, which are the same in all of them."""
        states = {} if self.recipe.export.is_functional else self.caches
        for name, port in inputs.items():
            linker.add_input(name, port.dtype, port.shape)
        for name, port in states.items():
            linker.add_state(name, port.shape)
        return states


def link_head(
    head: Fragment,
    names: dict[str, str],
    choices: list[Fragment],
    models: Models,
    linker: Linker,
    at: str = "",
) -> dict[str, Port]:
    """The end of a function, and what it gives. Where the package chooses the token, its logits are a value inside."""
    outputs, named = dict(head.outputs), {name: name for name in head.outputs} | names
    linker.append(models[head.name], f"{at}head_", named, head.parameters)
    for choice in choices:
        chosen = {name: named[name] for name in choice.inputs} | {name: f"{at}{name}" for name in choice.outputs}
        linker.append(models[choice.name], f"{at}choice_", chosen, {})
        outputs = {**choice.outputs, **{name: port for name, port in outputs.items() if name not in choice.inputs}}
    return outputs


def give(outputs: dict[str, Port], linker: Linker) -> dict[str, Port]:
    """Make these the outputs of a function."""
    for output in outputs:
        linker.add_output(output)
    return outputs
