"""What plugins add to the recipe language: kinds of a noun, and words for activations. A leaf: it imports nothing of
ours.

pydantic's unions are closed when a class is made. Those of the schema that users may add to say `Open(noun)` where they
would name their discriminator, and every spec class is built again when something is added: the classes stay the same.
"""

from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, Field, GetCoreSchemaHandler
from pydantic_core import CoreSchema

_kinds: dict[str, dict[str, type[BaseModel]]] = {}  # by noun and kind
_activations: dict[str, str | None] = {}  # by the recipe's word, transformers' word where it has one
_models: list[type[BaseModel]] = []  # every spec class, those that others are made of first


@dataclass(frozen=True)
class Open:
    """Of an annotation: its union of models with a `kind`, or its choice of words, has further members by `noun`."""

    noun: str

    @property
    def models(self) -> tuple[type[BaseModel], ...]:
        """The models that were added."""
        return tuple(_kinds.get(self.noun, {}).values())

    @property
    def words(self) -> tuple[str, ...]:
        """The words that were added."""
        return tuple(_activations) if self.noun == "activation" else ()

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        if get_origin(source) is Literal:
            return handler.generate_schema(Literal[(*get_args(source), *self.words)])
        members = (*(get_args(source) or (source,)), *self.models)
        if len(members) == 1:
            return handler(source)
        return handler.generate_schema(Annotated[Union[members], Field(discriminator="kind")])  # noqa: UP007


def note_model(model: type[BaseModel]) -> None:
    """To be called for each spec class as it is made."""
    _models.append(model)


def add_kind(noun: str, kind: str, spec: type[BaseModel]) -> None:
    """Let recipes say `kind` of `noun`, with the fields of `spec`."""
    _kinds.setdefault(noun, {})[kind] = spec
    rebuild()


def add_activation(name: str, hidden_act: str | None = None) -> None:
    """Let recipes say `name` for an activation, where a config.json says `hidden_act`."""
    _activations[name] = hidden_act
    rebuild()


def activation_words() -> tuple[tuple[str, str], ...]:
    """Of the activations that were added, transformers' word and the recipe's."""
    return tuple((theirs, ours) for ours, theirs in _activations.items() if theirs is not None)


def count_added() -> int:
    """How much was added so far."""
    return len(_activations) + sum(len(kinds) for kinds in _kinds.values())


def kinds_of(model: type[BaseModel]) -> tuple[str, ...]:
    """What `kind` a model's mapping may say; empty when the model has no such words."""
    field = model.model_fields.get("kind")
    return get_args(field.annotation) if field is not None and get_origin(field.annotation) is Literal else ()


def rebuild() -> None:
    """Make every spec class anew with what is there now."""
    for model in _models:
        model.model_rebuild(force=True)
