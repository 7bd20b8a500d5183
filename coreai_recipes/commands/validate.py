"""`recipe validate`: every problem of a recipe at once."""

import sys
from typing import Annotated, Any

import typer

from coreai_recipes.commands.options import (
    CheckpointOption,
    JsonOption,
    OverridesOption,
)
from coreai_recipes.errors import UserError


def validate(
    recipes: Annotated[
        list[str], typer.Argument(metavar="RECIPE...", help="Recipe files or names of built-in recipes.")
    ],
    checkpoint: CheckpointOption = None,
    overrides: OverridesOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check recipes and report every problem at once; with a checkpoint, its tensors and tokenizer too."""
    from coreai_recipes.calibration.text import hold_texts
    from coreai_recipes.recipe import load_resolved
    from coreai_recipes.recipe.importing import check_reference
    from coreai_recipes.report import console

    results: list[dict[str, Any]] = []
    for source in recipes:
        problems: list[dict[str, str]] = []
        notes: list[str] = []
        try:
            resolved = load_resolved(source, overrides or ())
            check_reference(resolved)
            hold_texts(resolved.recipe, resolved)
            if resolved.recipe.compress is not None and resolved.recipe.compress.rules:
                from coreai_recipes.storage.matching import hold_storage_rules

                hold_storage_rules(resolved.recipe, resolved)
            if checkpoint is not None:
                notes += _check_tensors(resolved.recipe, checkpoint)
        except UserError as error:
            problems += [{"code": c, "message": p} for c, p in zip(error.codes, error.problems, strict=True)]
        results.append({"recipe": source, "valid": not problems, "problems": problems, "notes": notes})
    if as_json:
        console.print_json({"valid": all(result["valid"] for result in results), "recipes": results})
    else:
        for result in results:
            for problem in result["problems"]:
                print(problem["message"], file=sys.stderr)
            if result["valid"]:
                print(f"{result['recipe']}: valid")
            for note in result["notes"]:
                print(f"{result['recipe']}: {note}")
    raise typer.Exit(0 if all(result["valid"] for result in results) else 2)


def _check_tensors(recipe: Any, checkpoint: str) -> list[str]:
    """What `build` would decide against the recipe's word; UserError where a tensor does not fit."""
    from coreai_recipes.bundle.adapting import open_unmerged, with_adapters
    from coreai_recipes.bundle.low_rank import with_low_rank
    from coreai_recipes.checkpoint.base import Unread
    from coreai_recipes.checkpoint.open import open_headers
    from coreai_recipes.decoder.filling import bind_weights, settle_head
    from coreai_recipes.decoder.model import build_decoder
    from coreai_recipes.recipe.importing.assembling import left_out
    from coreai_recipes.recipe.schema import MODEL
    from coreai_recipes.storage.source import with_source

    source = with_adapters(recipe, open_headers(checkpoint))
    recipe, note = settle_head(recipe, source)
    bind_weights(build_decoder(recipe), source)
    with_low_rank(recipe, source, open_unmerged(recipe, source))
    source.check_tokenizer(recipe.model.vocab_size)
    # of a checkpoint of the hub there are headers alone, and forms depend on scales
    as_source = () if isinstance(getattr(source, "base", source), Unread) else with_source(recipe, {MODEL: source})[1]
    packing = [] if source.packing is None else [f"weights are dequantised from {source.packing}"]
    return [*left_out(source.config), *packing, *((note,) if note else ()), *as_source]
