"""config.json -> a whole recipe, and a draft for one; what is wrong is said of the config's fields."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from coreai_recipes.errors import CheckpointError
from coreai_recipes.recipe.export_rules import scale_problems
from coreai_recipes.recipe.importing.checking import find_config_problems, find_notes, shown
from coreai_recipes.recipe.importing.choosing import choose_family
from coreai_recipes.recipe.importing.conditions import holds, value_in
from coreai_recipes.recipe.importing.family import Family, load_family
from coreai_recipes.recipe.importing.paths import get_path, set_path
from coreai_recipes.recipe.importing.reading import ModelRead, read_model
from coreai_recipes.recipe.importing.spelling import spread
from coreai_recipes.recipe.loader import validate_data
from coreai_recipes.recipe.plain import Problem
from coreai_recipes.recipe.plugins import load_installed
from coreai_recipes.recipe.schema import Recipe, SlidingAttention

CONTEXT = 2048  # what the built-in recipes have: enough to talk, small enough for a phone

DRAFTED = 4  # tokens that a draft proposes at a time, as transformers' constant schedule has them


@dataclass(frozen=True)
class Imported:
    """A recipe made from a config.json.

    Attributes:
        family: whose rules read it.
        longest: how many positions the model was trained for, None when the config does not say.
        notes: what of the config was left out, and why.
    """

    recipe: Recipe
    family: Family
    longest: int | None
    notes: tuple[str, ...] = ()


def recipe_from_config(
    config: Mapping[str, Any], name: str, checkpoint: str | None = None, chosen: str | None = None
) -> Imported:
    """The recipe of a config.json, by the rules of its model_type or of the `chosen` family.

    Raises CheckpointError with every field that is wrong or not understood, by its name.
    """
    load_installed()
    family, part = choose_family(config, chosen)
    if load_family(chosen or config["model_type"]).draft:
        raise CheckpointError(
            f"config.json: model_type: {config.get('model_type')} is a draft, which reads another model's caches\n"
            "  add it to that model's recipe, under `draft:`"
        )
    part = spread(part, family)
    read = read_model(part, family)
    longest = part.get(family.longest)
    data: dict[str, Any] = {
        "recipe": 1,
        "name": name,
        "reference": {"model_type": family.reference or family.name, "checkpoint": checkpoint},
        "model": read.data,
        "weights": {"names": read.weights},
        "export": {**family.export, "context": _choose_context(read.data, longest, family)},
    }
    if not any(scale_problems(data)):
        data["export"] = {"residual_scale": "auto", **data["export"]}
    recipe, problems = validate_data(data)
    if recipe is None or problems:
        said = {_in_words(problem, read, family, part) for problem in problems}
        raise CheckpointError(*sorted(said))
    outer = load_family(chosen or config["model_type"])
    around = () if outer.part is None else tuple(find_notes(config, outer))
    return Imported(recipe, family, longest if isinstance(longest, int) else None, (*around, *read.notes))


def left_out(config: Mapping[str, Any], chosen: str | None = None) -> tuple[str, ...]:
    """What is left out of a config.json, each with the reason; nothing where no family reads it."""
    try:
        return recipe_from_config(config, "notes", chosen=chosen).notes
    except CheckpointError:
        return ()


def draft_from_config(config: Mapping[str, Any], recipe: Recipe) -> dict[str, Any]:
    """The `draft:` block, plain data, of a draft's config.json for the target `recipe`.

    Raises CheckpointError when a size does not fit the target, with both numbers.
    """
    outer = load_family(str(config.get("model_type", "")))
    family, part = choose_family(config)
    if not outer.draft:
        raise CheckpointError(f"config.json: model_type: {outer.name} is not a draft model")
    # a draft owns no cache, whatever its config says of that
    layers = value_in(part, family.layer_count, family)
    read = read_model({**part, "num_kv_shared_layers": layers}, family, is_draft=True)
    draft = {key: value for key, value in read.data.items() if key not in ("embedding", "head")}
    problems = list(_fit_sizes(config, outer, recipe))
    for name, kind in draft["kinds"].items():
        problems += _fit_kind(name, kind, recipe)
    draft["kinds"] = {name.removesuffix("_shared"): kind for name, kind in draft["kinds"].items()}
    draft["layers"] = _rename(draft["layers"])
    CheckpointError.collect(f"config.json: {problem}" for problem in problems)
    for name, rule in outer.fields.items():
        if holds(rule.when, config, outer):
            for path in rule.sets:
                set_path(draft, path.removeprefix("model."), value_in(config, name, outer))
    draft["reference"] = {"model_type": outer.name}
    draft["weights"] = {"names": outer.weights}
    return draft


def with_draft(recipe: Recipe, config: Mapping[str, Any], checkpoint: str | None = None) -> Recipe:
    """The recipe with the draft that a draft's config.json describes; drafted tokens are verified DRAFTED at a time.

    Raises CheckpointError as `draft_from_config` does.
    """
    draft = draft_from_config(config, recipe)
    draft["reference"]["checkpoint"] = checkpoint
    data = recipe.model_dump()
    data["draft"] = draft
    functions = data["export"]["functions"]
    functions["score"] = functions["score"] or min(DRAFTED + 1, recipe.export.context)
    found, problems = validate_data(data)
    if found is None or problems:
        raise CheckpointError(
            *(f"config.json: gives {'.'.join(map(str, problem.location))}: {problem.message}" for problem in problems)
        )
    return found


def _fit_sizes(config: Mapping[str, Any], outer: Family, recipe: Recipe) -> list[str]:
    found = list(find_config_problems(config, outer))
    for name, rule in outer.fields.items():
        wanted = None if rule.fits is None else get_path(recipe.model.model_dump(include={rule.fits}), rule.fits)
        value = value_in(config, name, outer)
        if wanted is not None and value != wanted:
            found.append(f"{name}: {shown(value)}, and the target's {rule.fits} is {wanted}")
    return found


def _fit_kind(name: str, kind: dict[str, Any], recipe: Recipe) -> list[str]:
    """Let a draft's kind read the last own cache of its sort; what keeps it from that."""
    attention = kind["attention"]
    for mechanism in ("k_eq_v", "v_norm"):  # of keys and values, which a draft does not make
        attention.pop(mechanism, None)
    owners = [
        owner
        for owner in recipe.model.layer_kinds
        if recipe.model.kinds[owner].attention.kind == attention["kind"]
        and recipe.model.kinds[owner].attention.shares_kv_with is None
    ]
    if not owners:
        return [f"layer_types: the target has no {attention['kind']} layers for the draft to read"]
    attention["shares_kv_with"] = owners[-1]
    theirs = recipe.model.kinds[owners[-1]].attention
    sizes = {"num_kv_heads": theirs.num_kv_heads, "head_dim": theirs.head_dim}
    if isinstance(theirs, SlidingAttention):
        sizes["window"] = theirs.window
    ours, where = name.removesuffix("_shared"), f"the target's {owners[-1]} layers have"
    return [
        f"{field}: {attention[field]} in {ours} layers, and {where} {size}"
        for field, size in sizes.items()
        if attention[field] != size
    ]


def _rename(layers: list[Any]) -> list[Any]:
    """`layers` without the words for sharing: all layers of a draft do."""
    return [
        {**entry, "of": _rename(entry["of"])} if isinstance(entry, dict) else entry.removesuffix("_shared")
        for entry in layers
    ]


def _choose_context(model: Mapping[str, Any], longest: Any, family: Family) -> int:
    """As long as the built-in recipes', or twice the longest window; never beyond what the model was trained for."""
    windows = [kind["attention"].get("window") or 0 for kind in model["kinds"].values()]
    window = max(size for size in windows) if windows else 0
    wanted = max(int(family.export.get("context", CONTEXT)), 2 * window if isinstance(window, int) else 0)
    positions = get_path(model, "embedding.positions.count")
    chosen = [size for kind in model["kinds"].values() if isinstance(size := kind["attention"].get("index_topk"), int)]
    longest = min((size for size in (positions or longest, *chosen) if isinstance(size, int)), default=None)
    limit = longest if isinstance(longest, int) and longest >= 2 else wanted
    return max(min(wanted, limit, 1 << 20), min(window, 1 << 20))


def _in_words(problem: Problem, read: ModelRead, family: Family, config: Mapping[str, Any]) -> str:
    """A recipe's problem as the config's: the field that said what is wrong, where one did."""
    location, message = problem.location, problem.message
    kind = str(location[2]) if location[:2] == ("model", "kinds") and len(location) > 2 else None
    path = ".".join(map(str, location[3:] if kind else location[1:]))
    field = read.origins.get((kind, path))
    if problem.code == "missing":
        field = next((name for name, rule in family.fields.items() if path in rule.sets and name in config), None)
        message = f"{shown(config[field])}, and layers of kind {kind} need it" if field else message
    if field is None and path.startswith("rotary."):
        return f"config.json: rope_parameters: {path}: {message}"
    return (
        f"config.json: {field}: {message}" if field else f"config.json: gives {'.'.join(map(str, location))}: {message}"
    )
