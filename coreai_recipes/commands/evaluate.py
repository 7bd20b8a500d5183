"""`recipe evaluate`: perplexity and KL divergence of a bundle on a user's text."""

from typing import Annotated

import typer

from coreai_recipes.commands.options import (
    AdapterOption,
    BundleArgument,
    CheckpointOption,
    JsonOption,
    SchedulerOption,
    read_adapters,
)


def evaluate(
    bundle: BundleArgument,
    texts: Annotated[
        list[str], typer.Argument(metavar="TEXT...", help="Text files; `-` reads standard input.", show_default=False)
    ],
    checkpoint: CheckpointOption = None,
    window: Annotated[
        int | None, typer.Option(metavar="N", min=2, help="Tokens per window; 512, or the context if that is less.")
    ] = None,
    adapter: AdapterOption = None,
    scheduler: SchedulerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure a bundle's perplexity on text files and, with its checkpoint, its KL divergence from transformers.

    With --scheduler, each text is a task of that cluster.
    """
    from coreai_recipes.bundle import Bundle
    from coreai_recipes.commands.opening import find_bundle
    from coreai_recipes.commands.texts import read_texts
    from coreai_recipes.report import console
    from coreai_recipes.report.words import weights_line
    from coreai_recipes.scoring.scoring import evaluate as score

    opened = Bundle.open(find_bundle(bundle))
    read = read_texts(texts)
    with console.progress_bar() as progress:
        if scheduler is None:
            found = score(opened, read, checkpoint, window, progress, read_adapters(adapter))
        else:
            from coreai_recipes.zoo.evaluating import evaluate_on

            found = evaluate_on(scheduler, opened, read, checkpoint, window, progress, read_adapters(adapter))
    if as_json:
        console.print_json(found.to_json())
        return
    console.print_table(found.columns(), found.rows())
    console.print_notes(found.lines())
    print(weights_line(opened.described.package_format, found.weights))
