"""Rules of `compress` held against the parameters that there are: one that matches no matrix is a mistake."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from coreai_recipes.decoder.stacks import build_stacks
from coreai_recipes.errors import RecipeError
from coreai_recipes.recipe import Recipe, Resolved, load_resolved
from coreai_recipes.recipe.nearest import did_you_mean
from coreai_recipes.recipe.plain import Problem
from coreai_recipes.storage.compression import Compression, any_layer, is_for_host, is_matrix, shown_name
from coreai_recipes.storage.parameters import own_parameters
from coreai_recipes.storage.rows import WORDS, fit_rows
from coreai_recipes.storage.shorthand import with_bits
from coreai_recipes.storage.source import without_source


def hold_storage_rules(recipe: Recipe, written: Resolved | None = None) -> None:
    """Raise RecipeError for every rule that matches nothing, with its place where the recipe was `written`."""
    problems = list(_find_problems(recipe))
    if not problems:
        return
    if written is not None:
        raise RecipeError(*written.describe(problems))
    raise RecipeError(*(f"{'.'.join(map(str, p.location))}: {p.message}\n  {p.hint}" for p in problems))


def load_held(source: str | Path, overrides: Sequence[str] = (), bits: int | None = None) -> Recipe:
    """As `load_recipe`, with the rules of `compress` held against the recipe's parameters, or made for `--bits`."""
    resolved = load_resolved(source, overrides)
    if bits is not None:
        return with_bits(resolved.recipe, bits)
    hold_storage_rules(resolved.recipe, resolved)
    return resolved.recipe


def _find_problems(recipe: Recipe) -> Iterator[Problem]:
    recipe = without_source(recipe)  # names and shapes are the recipe's own
    rules = Compression.of(recipe).rules
    if not rules:
        return
    shapes = own_parameters(build_stacks(recipe)).shapes
    matrices = [name for name, shape in shapes.items() if is_matrix(name, shape)]
    for index, rule in enumerate(rules):
        matched = [name for name in matrices if rule.matches(name)]
        # of a table for a host alone palettes make nothing
        if not any(not is_for_host(name) or fit_rows(rule.storage, shapes[name])[1] is not WORDS for name in matched):
            others = [name for name in shapes if rule.matches(name)]
            message, hint = _explain(recipe, rule.pattern, others, matrices)
            yield Problem(("compress", "rules", index, "match"), "rule-unmatched", message, hint)


def _explain(recipe: Recipe, pattern: str, others: list[str], matrices: list[str]) -> tuple[str, str | None]:
    if others and is_for_host(others[0]):
        return f"`{pattern}` matches `{shown_name(others[0])}` alone: {WORDS}", "write `kind: int8` or `kind: int4`"
    if others:
        return (
            f"`{pattern}` matches `{shown_name(others[0])}` and no matrix to compress",
            "vectors stay float16",
        )
    message = f"`{pattern}` matches nothing"
    if recipe.model.head.tied and shown_name(pattern) == "head":
        return message, "the head is the table, stored once: write `embedding`"
    return message, did_you_mean(any_layer(pattern), dict.fromkeys(map(any_layer, matrices)))
