"""Every field of the recipe language, as docs/recipes.md lists them: `make schema` writes it there, from the models."""

import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from annotated_types import Ge, Gt, Le
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from coreai_recipes.recipe.fields import FieldType, type_of, type_of_field
from coreai_recipes.recipe.schema import Recipe

PAGE = Path(__file__).parents[2] / "docs/recipes.md"
BEGIN, END = "<!-- fields: written by `make schema` -->\n", "<!-- end of fields -->\n"
WORDS = {int: "integer", float: "number", str: "string"}
VAST = 2**31 - 1  # a bound that means only that a number is 32 bits wide
Models = tuple[type[BaseModel], ...]


def fields() -> str:
    """A section for each mapping of a recipe, in the order in which a recipe says them."""
    places = _places()
    top = _section("", FieldType(models=(Recipe,)), places)
    return BEGIN + "\n" + "\n".join([*top, *_below("", FieldType(models=(Recipe,)), places)]) + END


def _places() -> dict[Models, str]:
    """Where each mapping is described: at the first place that is reached, those nearest the top first."""
    places: dict[Models, str] = {}
    ahead = [("", FieldType(models=(Recipe,)))]
    while ahead:
        path, form = ahead.pop(0)
        if _place(form, places) is None:
            places[form.models] = path
            ahead += [found for name, info in _fields(form) for found in _mappings(_join(path, name), info)]
    return places


def _place(form: FieldType, places: dict[Models, str]) -> str | None:
    """Where a mapping is described, one that has fewer kinds among those of the same place."""
    return next((path for models, path in places.items() if set(form.models) <= set(models)), None)


def _below(path: str, form: FieldType, places: dict[Models, str]) -> Iterator[str]:
    """The sections of the mappings that a mapping's fields hold, where this is their place."""
    done = set()
    for name, info in _fields(form):
        for below, found in _mappings(_join(path, name), info):
            if _place(found, places) == below and below not in done:
                done.add(below)
                yield from _section(below, found, places)
                yield from _below(below, found, places)


def _section(path: str, form: FieldType, places: dict[Models, str]) -> Iterator[str]:
    yield f"### `{path}`\n" if path else "### The top level\n"
    if form.kinds:
        yield from (f"- `{form.tag}: {kind}`: {_sentence(model)}" for kind, model in form.kinds.items())
        yield ""
    else:
        yield from (f"{_sentence(model)}\n" for model in form.models)
    yield from _table(path, form, places)


def _table(path: str, form: FieldType, places: dict[Models, str]) -> Iterator[str]:
    several = len(form.kinds) > 1
    rows: dict[tuple[str, ...], list[str]] = {}
    for kind, model in form.kinds.items() or [("", model) for model in form.models]:
        for name, info in model.model_fields.items():
            if name != form.tag:
                below = type_of_field(info)
                value, default = _value(_join(path, name), below, places), _default(info)
                rows.setdefault((name, value, default, info.description or below.description or ""), []).append(kind)
    if not rows:
        return
    yield f"| field | value | default |{f' {form.tag}s |' if several else ''} meaning |"
    yield f"|---|---|---|{'---|' if several else ''}---|"
    names = [*dict.fromkeys(name for name, *_ in rows)]
    for name, value, default, meaning in sorted(rows, key=lambda row: names.index(row[0])):
        having = rows[name, value, default, meaning]
        kinds = ["all" if len(having) == len(form.kinds) else ", ".join(f"`{kind}`" for kind in having)]
        yield f"| {' | '.join([f'`{name}`', value, default, *kinds * several, meaning])} |"
    yield ""


def _fields(form: FieldType) -> Iterator[tuple[str, FieldInfo]]:
    return ((name, info) for model in form.models for name, info in model.model_fields.items())


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _mappings(path: str, info: FieldInfo | FieldType) -> Iterator[tuple[str, FieldType]]:
    """The mappings that may stand at a place: itself, under its free keys, or in its list."""
    form = info if isinstance(info, FieldType) else type_of_field(info)
    if form.models:
        yield path, form
    if form.values is not None:
        yield from _mappings(f"{path}.NAME", type_of(form.values))
    if form.items is not None:
        yield from _mappings(path, type_of(form.items))


def _value(path: str, form: FieldType, places: dict[Models, str]) -> str:
    """What may be written at a place."""
    choices = [f"`{json.dumps(choice) if isinstance(choice, int) else choice}`" for choice in form.choices]
    said = [", ".join(choices)] if choices else []
    if form.models:
        place = _place(form, places)
        assert place is not None
        said.append(f"[mapping](#{place.replace('.', '').lower()})")
    said += ["`true`, `false`" if kind is bool else WORDS[kind] + _bounds(kind, form) for kind in form.scalars]
    if form.keys:
        said.append("RULE: reason")
    elif form.values is not None:
        said.append(f"NAME: {_value(f'{path}.NAME', type_of(form.values), places)}")
    if form.items is not None:
        said.append(f"list of {_value(path, type_of(form.items), places)}")
    return " or ".join(said)


def _bounds(kind: type, form: FieldType) -> str:
    """` above 0`, `, 1 to 4,096` or nothing."""
    bounds = {type_: bound for type_, bound in form.bounds.items() if kind is not str}
    high = bounds.get(Le)
    shown = "" if high is None or high >= VAST else f"{high:,g}" if high < 1000 else f"{int(high):,}"
    if Ge not in bounds and kind is float and Gt in bounds:
        return f" above 0, at most {shown}" if shown else " above 0"
    if kind is float and Gt in bounds:
        return " above 0"
    low = bounds.get(Ge, bounds.get(Gt, -1) + 1)
    return "" if not bounds else f", {low:,g} to {shown}" if shown else f", {low:,g} or more"


def _default(info: FieldInfo) -> str:
    if info.is_required():
        return "required"
    default: Any = info.default
    if default is None or isinstance(default, BaseModel) or default == {}:
        return ""
    return f"`{default}`" if isinstance(default, str) else f"`{json.dumps(default)}`"


def _sentence(model: type[BaseModel]) -> str:
    """The first paragraph of a model's docstring."""
    return " ".join((inspect.getdoc(model) or "").partition("\n\n")[0].split())


def split_page(text: str) -> tuple[str, str, str]:
    """What stands before the fields, the fields with their marks, and what stands behind."""
    before, begin, rest = text.partition(BEGIN)
    inside, end, after = rest.partition(END)
    return before, begin + inside + end, after


def main() -> None:
    before, _, after = split_page(PAGE.read_text())
    PAGE.write_text(before + fields() + after)


if __name__ == "__main__":
    main()
