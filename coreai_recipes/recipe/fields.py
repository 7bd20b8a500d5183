"""What the schema says about one place of a recipe, derived from the pydantic models: there is no second table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from coreai_recipes.recipe.kinds import Open

FORMAT = "format"
_BOUNDS = {Gt: "gt", Ge: "ge", Lt: "lt", Le: "le"}


@dataclass(frozen=True)
class FieldType:
    """What may stand at one place: any of these."""

    models: tuple[type[BaseModel], ...] = ()
    scalars: tuple[type, ...] = ()
    choices: tuple[Any, ...] = ()
    items: Any = None
    """The annotation of a list's entries."""
    values: Any = None
    """The annotation of a mapping's values, when its keys are free."""
    keys: tuple[str, ...] = ()
    """The words that the keys of such a mapping may be, where they are words that are known."""
    nullable: bool = False
    members: int = 1
    """How many members a union has; with more than one, pydantic's locations name the member that was tried."""
    bounds: Mapping[type, Any] = field(default_factory=dict)
    description: str | None = None

    @property
    def tag(self) -> str:
        """The key by which a mapping says which model it is: `kind`, or a package's `format`."""
        return FORMAT if self.models and all(FORMAT in model.model_fields for model in self.models) else "kind"

    @property
    def usual_kind(self) -> str | None:
        """What a mapping is that does not say it."""
        told = (model.model_fields[FORMAT].default for model in self.models if self.tag == FORMAT)
        return next((default for default in told if isinstance(default, str)), None)

    @cached_property
    def kinds(self) -> dict[str, type[BaseModel]]:
        """The models of a discriminated union by their `tag`."""
        tagged = (
            model
            for model in self.models
            if self.tag in model.model_fields and (self.tag == FORMAT or model.model_fields[self.tag].is_required())
        )
        return {name: model for model in tagged for name in get_args(model.model_fields[self.tag].annotation)}

    def fields(self, kind: Any = None) -> dict[str, FieldInfo]:
        """The fields that a mapping may have here; those of one kind when it is known."""
        known = self.kinds.get(kind) if isinstance(kind, str) else None
        models = (known,) if known else self.models
        return {name: info for model in models for name, info in model.model_fields.items()}

    def step(self, key: str | int, kind: Any = None) -> "FieldType | None":
        """What may stand below `key`, None when nothing is known about it."""
        if self.models:
            info = self.fields(kind).get(str(key))
            return type_of_field(info) if info else None
        annotation = self.items if isinstance(key, int) else self.values
        return None if annotation is None else type_of(annotation)

    def narrow(self, member: str | int) -> "FieldType":
        """The one member of a union that pydantic's location names: a model by its kind or its class, else no model."""
        named = {model.__name__: model for model in self.models} | self.kinds
        models = (named[str(member)],) if str(member) in named else ()
        return replace(self, models=models, scalars=() if models else self.scalars, members=1)


def type_of_field(info: FieldInfo) -> FieldType:
    """What may be the value of a model's field."""
    return _describe(type_of(info.annotation), [info, *info.metadata])


def type_of(annotation: Any) -> FieldType:
    """What an annotation allows."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _describe(type_of(arguments[0]), arguments[1:])
    if origin in (Union, UnionType):
        return _join([type_of(member) for member in arguments])
    if origin is Literal:
        return FieldType(choices=arguments)
    if origin is list:
        return FieldType(items=arguments[0])
    if origin is dict:
        return FieldType(values=arguments[1], keys=type_of(arguments[0]).choices)
    if annotation is NoneType:
        return FieldType(nullable=True, members=0)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return FieldType(models=(annotation,))
    return FieldType(scalars=(annotation,))


def _join(forms: Sequence[FieldType]) -> FieldType:
    return FieldType(
        models=tuple(model for form in forms for model in form.models),
        scalars=tuple(scalar for form in forms for scalar in form.scalars),
        choices=tuple(choice for form in forms for choice in form.choices),
        items=next((form.items for form in forms if form.items is not None), None),
        values=next((form.values for form in forms if form.values is not None), None),
        keys=tuple(key for form in forms for key in form.keys),
        nullable=any(form.nullable for form in forms),
        members=sum(form.members for form in forms),
        bounds={key: bound for form in forms for key, bound in form.bounds.items()},
        description=next((form.description for form in forms if form.description), None),
    )


def _describe(form: FieldType, metadata: Sequence[Any]) -> FieldType:
    """`form` with what an annotation's metadata adds: bounds, the outermost description, and what plugins add."""
    bounds, description = dict(form.bounds), form.description
    for item in metadata:
        if isinstance(item, Open) and form.choices:
            form = replace(form, choices=(*form.choices, *item.words))
        elif isinstance(item, Open):
            form = replace(form, models=(*form.models, *item.models), members=form.members + len(item.models))
        if isinstance(item, FieldInfo):
            description = item.description or description
            bounds |= {
                type(bound): getattr(bound, _BOUNDS[type(bound)]) for bound in item.metadata if type(bound) in _BOUNDS
            }
        elif type(item) in _BOUNDS:
            bounds[type(item)] = getattr(item, _BOUNDS[type(item)])
    return replace(form, bounds=bounds, description=description)
