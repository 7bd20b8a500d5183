"""Which module stands for each (noun, kind) of a recipe. A leaf: it imports nothing of ours but the errors."""

from collections.abc import Callable
from typing import TypeVar

from torch import nn

from coreai_recipes.errors import UserError

ModuleClass = TypeVar("ModuleClass", bound=type[nn.Module])

_registry: dict[tuple[str, str], type[nn.Module]] = {}


class RegistryError(UserError):
    """A primitive that is registered twice, or asked for and not there."""


def register(noun: str, kind: str) -> Callable[[ModuleClass], ModuleClass]:
    """Class decorator: the module that builds `noun` of `kind`. Raises RegistryError when the place is taken."""

    def add(module_class: ModuleClass) -> ModuleClass:
        taken = _registry.get((noun, kind))
        if taken is not None:
            raise RegistryError(
                f"primitive {noun} `{kind}` is already {taken.__module__}.{taken.__qualname__}; {_known(noun)}"
            )
        _registry[noun, kind] = module_class
        return module_class

    return add


def primitive(noun: str, kind: str) -> type[nn.Module]:
    """The module class of `noun` and `kind`. Raises RegistryError that says which there are."""
    try:
        return _registry[noun, kind]
    except KeyError:
        raise RegistryError(f"there is no primitive {noun} `{kind}`; {_known(noun)}") from None


def registered(noun: str | None = None) -> list[tuple[str, str]]:
    """Every registered (noun, kind), sorted; those of one noun when it is given."""
    return sorted(key for key in _registry if noun in (None, key[0]))


def _known(noun: str) -> str:
    kinds = [kind for _, kind in registered(noun)]
    if kinds:
        return f"kinds of {noun}: {', '.join(kinds)}"
    return f"nouns with primitives: {', '.join(sorted({noun for noun, _ in _registry}))}"
