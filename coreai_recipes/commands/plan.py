"""`recipe plan`: what a recipe costs, before any weight is read."""

import sys

import typer

from coreai_recipes.commands.options import (
    BitsOption,
    CheckpointOption,
    DeviceOption,
    JsonOption,
    OverridesOption,
    RecipeArgument,
)


def plan(
    recipe: RecipeArgument,
    checkpoint: CheckpointOption = None,
    overrides: OverridesOption = None,
    bits: BitsOption = None,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print sizes, memory, functions and the engine's rules, before any weight is read.

    With --device, also print bounds on the time of a call, what must fit, the
    setting that mends each broken rule, and what `build --device` would choose.
    Only `compress: {default: source}` needs a checkpoint.
    """
    from coreai_recipes.lint.devices import find_device
    from coreai_recipes.planning.plan import make_plan
    from coreai_recipes.recipe.loader import compress_text
    from coreai_recipes.report import console
    from coreai_recipes.report.plan import print_costs, print_fit, print_products
    from coreai_recipes.report.rules import print_lint
    from coreai_recipes.report.weights import print_storage
    from coreai_recipes.report.words import weights_line
    from coreai_recipes.storage.matching import load_held

    named = None if device is None else find_device(device)
    loaded = load_held(recipe, overrides or (), bits)
    notes: tuple[str, ...] = ()
    if checkpoint is not None:
        from coreai_recipes.checkpoint.open import open_headers
        from coreai_recipes.decoder.filling import settle_head
        from coreai_recipes.recipe.schema import MODEL
        from coreai_recipes.storage.source import with_source

        source = open_headers(checkpoint)
        loaded, note = settle_head(loaded, source)
        loaded, as_source = with_source(loaded, {MODEL: source})
        notes = (*((note,) if note else ()), *as_source)
    planned = make_plan(loaded, named, overrides or ())
    document = planned.to_json()
    document["notes"] = [*notes, *document["notes"]]
    if as_json:
        console.print_json(document)
    else:
        print_costs(document)
        if bits is not None:
            print(compress_text(loaded), end="")
        print(weights_line(loaded.export.format, planned.weights))
        if any(row["form"] != "float16" or "why" in row for row in planned.by_tensor):
            print_storage(planned.by_tensor)
        print_products(document)
        print_lint(planned.lint.to_json())
        print_fit(document)
        console.print_notes(document["notes"])
        if planned.over_budget is not None:
            print(planned.over_budget, file=sys.stderr)
    raise typer.Exit(0 if planned.over_budget is None else 1)
