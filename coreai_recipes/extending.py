"""Kinds and activations of your own: decorators that let recipes say, build and export them like those that are there.

    @register_activation("mish", hidden_act="mish")
    def mish(x: Tensor) -> Tensor: ...

    @register("mlp", spec=MySpec)              # MySpec.kind: Literal["mine"]
    class MyMLP(nn.Module): ...

They are for a plugin: a file that is given with `recipe --plugin FILE`, or a package with an entry point in the group
`coreai_recipes.primitives`. docs/extending.md has whole examples, and what a module must be.
"""

import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass

from pydantic import BaseModel
from torch import Tensor, nn

from coreai_recipes.primitives.mlp import ACTIVATIONS
from coreai_recipes.primitives.registry import ModuleClass, RegistryError
from coreai_recipes.primitives.registry import register as register_primitive
from coreai_recipes.primitives.rotary import Rotary
from coreai_recipes.recipe.kinds import add_activation, add_kind, kinds_of
from coreai_recipes.recipe.nearest import did_you_mean
from coreai_recipes.recipe.schema import Attention, RMSNorm, Spec, TurningRotary

ActivationFunction = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Noun:
    """What may be registered: what its schema class and its module derive from, and what the module is built with."""

    spec: type[BaseModel]
    module: type[nn.Module]
    arguments: tuple[str, ...]


NOUNS = {
    "attention": Noun(Attention, nn.Module, ("kind", "hidden_size", "norm", "folded")),
    "mlp": Noun(Spec, nn.Module, ("spec", "hidden_size")),
    "norm": Noun(RMSNorm, nn.Module, ("spec", "channels", "rows")),
    "rotary": Noun(TurningRotary, Rotary, ("spec", "head_dim", "folded", "context")),
}


def register(noun: str, spec: type[BaseModel] | None = None) -> Callable[[ModuleClass], ModuleClass]:
    """Class decorator: the module that builds `noun` of the kind that `spec`, its schema class, says.

    Raises RegistryError where there is no such noun, where the classes are not what the noun needs, and where the kind
    is there already.
    """

    def add(module: ModuleClass) -> ModuleClass:
        kind = _check(noun, spec, module)
        register_primitive(noun, kind)(module)
        add_kind(noun, kind, spec)  # type: ignore[arg-type]  # `_check` refuses None
        return module

    return add


def register_activation(name: str, hidden_act: str | None = None) -> Callable[[ActivationFunction], ActivationFunction]:
    """Decorator: the function that recipes call `name`, and transformers' configs `hidden_act`.

    Without `hidden_act` no reference has it. Raises RegistryError when the name is there already.
    """

    def add(function: ActivationFunction) -> ActivationFunction:
        if name in ACTIVATIONS:
            raise RegistryError(f"there is an activation `{name}` already; available: {', '.join(ACTIVATIONS)}")
        ACTIVATIONS[name] = function
        add_activation(name, hidden_act)
        return function

    return add


def _check(noun: str, spec: type[BaseModel] | None, module: type[nn.Module]) -> str:
    """The kind, when everything is as the noun needs it."""
    if noun not in NOUNS:
        raise RegistryError(f"nothing can be registered as `{noun}`; {did_you_mean(noun, NOUNS)}")
    wanted, name = NOUNS[noun], getattr(module, "__qualname__", repr(module))
    if not isinstance(spec, type):
        raise RegistryError(f'{name} has no schema class: register("{noun}", spec=...) names it')
    for given, base in ((spec, wanted.spec), (module, wanted.module)):
        if not (isinstance(given, type) and issubclass(given, base)):
            raise RegistryError(f"{getattr(given, '__qualname__', given)} does not derive from {_name(base)}")
    kinds = kinds_of(spec)
    if len(kinds) != 1:
        raise RegistryError(f'{spec.__qualname__} does not say its kind: `kind: Literal["..."]`')
    try:
        inspect.signature(module).bind(*wanted.arguments)
    except TypeError as error:
        raise RegistryError(f"{name}({', '.join(wanted.arguments)}) is how a recipe builds it: {error}") from None
    return kinds[0]


def _name(base: type) -> str:
    """As a user imports it: from the outermost package that has it."""
    parts = base.__module__.split(".")
    packages = (".".join(parts[: end + 1]) for end in range(len(parts)))
    found = next(name for name in packages if getattr(sys.modules[name], base.__qualname__, None) is base)
    return f"{found}.{base.__qualname__}"
