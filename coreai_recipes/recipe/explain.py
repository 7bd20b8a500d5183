"""What pydantic found wrong, in the words of a recipe's writer."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from annotated_types import Ge, Gt, Le
from pydantic import ValidationError

from coreai_recipes.recipe.fields import FieldType
from coreai_recipes.recipe.inherit import RECIPE, dotted, kind_of, shown
from coreai_recipes.recipe.nearest import did_you_mean, nearest
from coreai_recipes.recipe.plain import Location, Problem
from coreai_recipes.recipe.schema import LayerKind, Recipe
from coreai_recipes.recipe.yaml_reader import Mark, Node

_NOTHING = Node(None, Mark(""), "null")
_SCALARS = {int: "a whole number", float: "a number", bool: "`true` or `false`", str: "a word"}
_WRITTEN_ONLY = {LayerKind: "like", Recipe: "extends"}
_LARGE = 1 << 30
MAX_ERRORS = 1000
OF_PLUGINS = ("attention", "mlp", "norm", "rotary")  # nouns whose kinds a plugin may add to


@dataclass(frozen=True)
class _Found:
    """One of pydantic's errors, with what stands at its place and what may stand there."""

    type: str
    context: Mapping[str, Any]
    location: Location
    node: Node
    form: FieldType
    holder: FieldType
    """What may stand one level up."""
    holder_kind: str | None
    """The `kind` that the mapping one level up says."""


def explain(error: ValidationError, root: Node, whole: FieldType = RECIPE) -> list[Problem]:
    """Every problem of `error` once, in a tree of which `whole` says what may stand there; the rules' own are left out,
    for they are found on the plain data."""
    problems: dict[tuple[Location, str], Problem] = {}
    for detail in error.errors(include_url=False, include_input=False)[:MAX_ERRORS]:
        found = (
            None
            if detail["type"] == "rules"
            else _find(detail["type"], detail.get("ctx", {}), detail["loc"], root, whole)
        )
        if found:
            problem = _problem(found)
            problems.setdefault((problem.location, problem.message), problem)
    return list(problems.values())


def _find(error_type: str, context: Mapping[str, Any], loc: Location, root: Node, whole: FieldType) -> _Found | None:
    """Follow pydantic's location through the tree; None when it tried a union's member that was not meant.

    After a union the location names the member that was tried, which is no key of the recipe: the forms know where.
    """
    form, node, location = whole, root, list[str | int]()
    holder, kind = whole, None
    steps = iter(loc)
    for step in steps:
        before = form
        if form.members > 1:
            narrowed = form.narrow(step)
            mixed = bool(form.models) and bool(form.scalars) and isinstance(node.value, dict | str)
            if mixed and bool(narrowed.models) != isinstance(node.value, dict):
                return None
            below = next(steps, None)
            if below is None:
                break
            form, step = narrowed, below
        if step == "[key]":
            error_type = "bad_key"
            break
        holder, kind = before, kind_of(node, before)
        location.append(step)
        form, node = form.step(step, kind) or FieldType(), _below(node, step)
    return _Found(error_type, context, tuple(location), node, form, holder, kind)


def _problem(found: _Found) -> Problem:
    match found.type:
        case "missing":
            choices = f"the only choice is `{found.form.choices[0]}`" if len(found.form.choices) == 1 else None
            return Problem(found.location, "missing", "missing", found.form.description or choices)
        case "extra_forbidden":
            return Problem(found.location, "key-unknown", "unknown key", _hint_for_unknown(found), at_key=True)
        case "bad_key" if found.holder.keys:
            return Problem(
                found.location,
                "key-unknown",
                "unknown key",
                did_you_mean(str(found.location[-1]), found.holder.keys),
                at_key=True,
            )
        case "bad_key":
            return Problem(
                found.location,
                "kind-name",
                "not a valid name for a kind",
                "use a letter, then letters, digits and `_`",
                True,
            )
        case "union_tag_not_found":
            return Problem(
                found.location, "kind-unsaid", f"`{found.form.tag}` is missing: {_one_of(tuple(found.form.kinds))}"
            )
        case "union_tag_invalid":
            tag = _below(found.node, found.form.tag)
            near = nearest(str(tag.value), found.form.kinds)
            message = f"{shown(tag)} is not {_one_of(tuple(found.form.kinds))}"
            hint = f"did you mean `{near}`?" if near else None
            if near is None and found.location[-1] in OF_PLUGINS and isinstance(tag.value, str):
                hint = "if a plugin has this kind, name its file with --plugin"
            return Problem((*found.location, found.form.tag), "kind-invalid", message, hint)
    return Problem(found.location, "value", _wrong_value(found), _hint_for_value(found))


def _wrong_value(found: _Found) -> str:
    value, form = shown(found.node), found.form
    if form.choices and form.scalars:
        if _is_outside(form, found.node.value):
            return f"{value} {_outside(form, found.node.value)}"
        return f"{value} is neither {_expected(form)}"
    match found.type:
        case "greater_than" | "greater_than_equal" | "less_than" | "less_than_equal":
            return f"{value} {_outside(form, found.node.value)}"
        case "finite_number":
            return f"{value} is not a finite number"
        case "no_figure":
            return f"{value} gives no figure: say what was measured, or what it costs"
        case "string_pattern_mismatch":
            return f"{value} is not a name"
        case "string_too_short" | "too_short":
            return f"{value}: at least one is required"
        case "too_long":
            return f"{found.context['actual_length']} entries; at most {found.context['max_length']} are allowed"
    return f"{value} is not {_expected(form)}"


def _expected(form: FieldType) -> str:
    """What may stand at a place, as a noun."""
    words = [_SCALARS.get(scalar, scalar.__name__) for scalar in form.scalars]
    if form.choices:
        words.append(_one_of(form.choices))
    if form.models or form.values:
        words.append("a mapping")
    if form.items:
        words.append("a list")
    if Gt in form.bounds and form.bounds[Gt] == 0 and words and words[0].endswith("number"):
        words[0] += " above 0"
    return (" nor " if form.choices and form.scalars else " or ").join(words)


def _is_outside(form: FieldType, value: Any) -> bool:
    """Whether a number of a type that may stand there is beyond the bounds of its place."""
    if type(value) not in form.scalars:
        return False
    least, most = form.bounds.get(Ge), form.bounds.get(Le)
    return (least is not None and value < least) or (most is not None and value > most)


def _outside(form: FieldType, value: Any) -> str:
    """The interval when both its ends tell something, else the end that was passed."""
    above, least, most = form.bounds.get(Gt), form.bounds.get(Ge), form.bounds.get(Le)
    if above is None and least is not None and most is not None and most < _LARGE:
        return f"is not in [{least}, {most}]"
    if above is not None and most is not None and most <= 1:
        return f"is not in ({above}, {most}]"
    if most is not None and value > most:
        return f"is more than {most}"
    return f"is not above {above}" if above is not None and value <= above else f"is less than {least}"


def _one_of(choices: tuple[Any, ...]) -> str:
    names = ", ".join(f"`{choice}`" for choice in choices)
    return names if len(choices) == 1 else f"one of {names}"


def _hint_for_unknown(found: _Found) -> str | None:
    """The nearest key that may stand there, else the kinds that do have the key or one like it."""
    key, kind = str(found.location[-1]), found.holder_kind
    written_only = [_WRITTEN_ONLY[model] for model in found.holder.models if model in _WRITTEN_ONLY]
    known = [*found.holder.fields(kind), *written_only]
    foreign = [field for field in found.holder.fields() if field not in known]
    close = key if key in foreign else nearest(key, [*known, *foreign])
    if close not in foreign:
        return did_you_mean(key, known)
    owners = [f"`{owner}`" for owner, model in found.holder.kinds.items() if close in model.model_fields]
    lead = "" if close == key else f"did you mean `{close}`? "
    return f"{lead}{' and '.join(owners)} {'has' if len(owners) == 1 else 'have'} it, `{kind}` does not"


def _hint_for_value(found: _Found) -> str | None:
    value, form = found.node.value, found.form
    if isinstance(value, str) and value in form.kinds:  # said of the mapping, and meant of its tag
        tag = f"{dotted(found.location)}.{form.tag}"
        return f"say that of `{tag}` (--set {tag}={value})"
    near = nearest(str(value), map(str, form.choices))
    return f"did you mean `{near}`?" if near else found.form.description


def _below(node: Node, step: str | int) -> Node:
    """The value under a key or an index, null where there is none."""
    if isinstance(node.value, dict):
        return node.value.get(str(step), _NOTHING)
    if isinstance(node.value, list) and isinstance(step, int) and step < len(node.value):
        return node.value[step]
    return _NOTHING
