"""What a rule of `compress` says beside the default that it changes, by plain data alone."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from coreai_recipes.errors import RecipeError
from coreai_recipes.recipe.plain import Location, Problem, value_at
from coreai_recipes.recipe.sizes import MAX_RULES

BITS = (1, 2, 3, 4, 6, 8)  # what `--bits` takes
# the fields of each kind beside `kind`
FIELDS: dict[str, tuple[str, ...]] = {
    "float16": (),
    "int4": ("block", "symmetric"),
    "int8": ("block", "symmetric"),
    "palettize": ("bits", "group"),
    "source": (),
}
OF_RULES = ("bits", "group", "block", "symmetric")


def check_bits(bits: int) -> None:
    """Raise RecipeError for a number that `--bits` does not take."""
    if bits not in BITS:
        raise RecipeError(f"--bits {bits}: not one of {', '.join(map(str, BITS))}")


def compress_problems(recipe: Mapping[str, Any]) -> Iterator[Problem]:
    if value_at(recipe, "compress", "budget", "kl") is not None and value_at(recipe, "reference", "model_type") is None:
        at: Location = ("compress", "budget", "kl")
        yield Problem(at, "budget-reference", "without a reference, the loss cannot be measured", "leave it out")
    yield from _tune_problems(value_at(recipe, "compress"))
    yield from _regroup_problems(value_at(recipe, "compress"))
    default, rules = value_at(recipe, "compress", "default", "kind"), value_at(recipe, "compress", "rules")
    if value_at(recipe, "compress", "default") is None:
        default = "float16"
    elif value_at(recipe, "compress", "default") == "source":
        default = "source"
    if not isinstance(rules, Sequence) or isinstance(rules, str):
        return
    for index, rule in enumerate(islice(rules, MAX_RULES)):
        if isinstance(rule, Mapping):
            yield from _rule_problems(("compress", "rules", index), rule, default)


def _tune_problems(compress: Any) -> Iterator[Problem]:
    if not isinstance(compress, Mapping) or compress.get("tune") is None:
        return
    why = None
    if compress.get("calibration", "") is None:
        why = "`calibration: null` leaves no text to tune on"
    elif _is_source(compress):
        why = "`default: source` keeps the checkpoint's own numbers"
    if why is not None:
        yield Problem(("compress", "tune"), "tune-nothing", why, "remove one of the two")


def _regroup_problems(compress: Any) -> Iterator[Problem]:
    if isinstance(compress, Mapping) and compress.get("regroup") is True and _is_source(compress):
        why = "`default: source` keeps the checkpoint's numbers where they are"
        yield Problem(("compress", "regroup"), "regroup-source", why, "remove one of the two")


def _is_source(compress: Mapping[str, Any]) -> bool:
    default = compress.get("default")
    return default == "source" or (isinstance(default, Mapping) and default.get("kind") == "source")


def _rule_problems(at: Location, rule: Mapping[str, Any], default: Any) -> Iterator[Problem]:
    said = [field for field in ("kind", *OF_RULES) if rule.get(field) is not None]
    kind = rule.get("kind") if "kind" in said else default
    if not said:
        yield Problem(at, "rule-empty", "this rule changes nothing", "set `kind`, `bits` or `block`, or remove it")
    if not isinstance(kind, str) or kind not in FIELDS:
        return
    for field in said:
        if field in OF_RULES and field not in FIELDS[kind]:
            owner = "palettize" if field in FIELDS["palettize"] else "int4"
            hint = f"add `kind: {owner}`" if "kind" not in said else None
            yield Problem((*at, field), "rule-foreign", f"`{kind}` has no {field}", hint)
    if kind == "palettize" and default in FIELDS and default != "palettize" and "bits" not in said:
        message = f"`bits` is missing, and the default, `{default}`, has none"
        yield Problem(at, "rule-bits", message, "add `bits: 4`")
