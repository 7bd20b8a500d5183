"""A recipe as a person writes it: what differs from the defaults, and a kind `like` another."""

from collections.abc import Mapping, Sequence
from typing import Any

from coreai_recipes.recipe.fields import FieldType
from coreai_recipes.recipe.schema import LayerKind, Recipe
from coreai_recipes.recipe.yaml_writer import write_yaml

_ORDERS = {
    "": ("recipe", "name", "reference", "model", "draft", "weights", "adapters", "export"),
    "model": (
        "vocab_size", "hidden_size", "embedding", "norm", "placement", "residual_multiplier", "layer_scalar", "altup",
        "laurel_rank", "head", "kinds", "layers",
    ),
    "draft": (
        "reference", "vocab_size", "hidden_size", "norm", "placement", "layer_scalar", "centroids", "steps", "kinds",
        "layers", "weights",
    ),
    "attention": (
        "kind", "window", "num_heads", "num_kv_heads", "head_dim", "shares_kv_with", "bias", "qk_norm", "v_norm",
        "k_eq_v", "scale", "softcap", "clip", "temperature", "alibi",
    ),
}  # fmt: skip


def write_recipe(recipe: Recipe, heading: Sequence[str], notes: Mapping[str, str]) -> str:
    """The recipe's text below `heading`, a comment a line; `notes` go behind the lines that say those keys."""
    lines = [f"# {line}".rstrip() for line in heading]
    waiting = dict(notes)
    for line in write_yaml(written_form(recipe)).splitlines():
        key = line.strip().partition(":")[0]
        lines.append(f"{line}  # {waiting.pop(key)}" if key in waiting else line)
    return "\n".join(lines) + "\n"


def written_form(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain data, without what is so anyway."""
    data: dict[str, Any] = recipe.model_dump(exclude_defaults=True)
    if data["reference"] is not None:
        data["reference"] = {key: value for key, value in data["reference"].items() if value is not None}
    for stack in ("model", "draft"):
        if stack in data:
            data[stack]["kinds"] = liken(data[stack]["kinds"])
    ordered: dict[str, Any] = _ordered(data)
    return ordered


def liken(kinds: Mapping[str, Any]) -> dict[str, Any]:
    """Each kind after the first as the earlier one that it differs least from, and in what; or whole where that is
    shorter."""
    written: dict[str, Any] = {}
    for name, kind in kinds.items():
        choices = [kind]
        for other in written:
            difference = _difference(kinds[other], kind, FieldType(models=(LayerKind,)))
            choices.append({"like": other, **difference})
        written[name] = min(choices, key=lambda choice: len(write_yaml(_ordered({"kinds": {name: choice}}))))
    return written


def _difference(base: Mapping[str, Any], over: Mapping[str, Any], form: FieldType | None) -> dict[str, Any]:
    """What must be said over `base` to give `over`: a key that is gone is null, unless a new kind drops it anyway."""
    found: dict[str, Any] = {}
    kind = over.get("kind")
    dropped: set[str] = set()
    if form is not None and kind != base.get("kind"):
        dropped = form.fields().keys() - form.fields(kind).keys()
    for key, value in over.items():
        if key not in base:
            found[key] = value
        elif isinstance(value, Mapping) and isinstance(base[key], Mapping):
            below = _difference(base[key], value, form.step(key, kind) if form else None)
            if below:
                found[key] = below
        elif value != base[key]:
            found[key] = value
    for key in base.keys() - over.keys() - dropped:
        found[key] = None
    return found


def _ordered(data: Any, place: str = "") -> Any:
    """The keys in the order of reading: `kind` first, sizes before switches."""
    if isinstance(data, list):
        return [_ordered(entry) for entry in data]
    if not isinstance(data, dict):
        return data
    order = _ORDERS.get(place, ())

    def rank(key: str) -> tuple[int, int]:
        return (-1 if key in ("kind", "like") else order.index(key) if key in order else len(order)), 0

    keys = sorted(data, key=rank)
    return {key: _ordered(data[key], key) for key in keys}
