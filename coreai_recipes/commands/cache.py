"""`recipe cache`: what builds keep on this disk."""

from typing import Any

from coreai_recipes.commands.options import JsonOption
from coreai_recipes.errors import UserError


def list_(as_json: JsonOption = False) -> None:
    """List converted fragments and tokenizers, and the models of built-in recipes in the hub's cache."""
    from coreai_recipes.checkpoint.hub_cache import cached_models
    from coreai_recipes.export.cache import default_root, held_files
    from coreai_recipes.report import console
    from coreai_recipes.report.words import count

    root = default_root()
    held = held_files(root)
    place = "-" if root is None else str(root)
    rows: list[dict[str, Any]] = [{"what": count(len(held), "conversion"), "bytes": sum(held.values()), "path": place}]
    rows += [
        {"what": each.repo_id, "bytes": each.bytes, "path": str(each.path)} for each in cached_models(_checkpoints())
    ]
    if as_json:
        console.print_json(rows)
        return
    console.print_table(("what", ">bytes", "where"), [(r["what"], f"{r['bytes']:,}", r["path"]) for r in rows])


def clean() -> None:
    """Remove what was converted; the next build converts it again. Models stay: `hf cache rm` removes them."""
    from coreai_recipes.export.cache import default_root, held_files
    from coreai_recipes.report.words import count

    held = held_files(default_root())
    problems = []
    for path in held:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            problems.append(f"{path}: cannot be removed: {(error.strerror or str(error)).lower()}")
    UserError.collect(problems)
    print(f"{count(len(held), 'conversion')} removed, {sum(held.values()) / 1e6:,.1f} MB")


def _checkpoints() -> set[str]:
    """The hub ids that built-in recipes name."""
    from coreai_recipes.recipe import load_recipe
    from coreai_recipes.recipe.source import built_in_recipes

    named = set()
    for recipe in map(load_recipe, built_in_recipes()):
        stacks = (recipe.reference, recipe.draft and recipe.draft.reference)
        named |= {each.checkpoint.partition("@")[0] for each in stacks if each and each.checkpoint}
    return named
