"""`recipe report`: bundles on a page."""

from pathlib import Path
from typing import Annotated

import typer

from coreai_recipes.commands.options import JsonOption, out_option
from coreai_recipes.errors import UserError

MOST = 6  # bundles on one page


def report_(
    bundles: Annotated[
        list[str], typer.Argument(metavar="BUNDLE...", help="Bundles' folders, or their names in dist/.")
    ],
    out: Annotated[Path, out_option("FILE", "Write the page to FILE.")] = Path("report.html"),
    as_json: JsonOption = False,
) -> None:
    """Write one page about a bundle, or about several side by side; it needs no network and no script.

    The page shows the recipe, the architecture, dB by layer, ranges, bits and
    loss by tensor, the engine's rules, the plan and device reports.
    """
    from coreai_recipes.bundle import Bundle
    from coreai_recipes.bundle.facts import facts_of
    from coreai_recipes.commands.opening import find_bundle
    from coreai_recipes.report import console

    if len(bundles) > MOST:
        raise UserError(f"recipe report: {len(bundles)} bundles; a page takes {MOST}")
    facts = [facts_of(Bundle.open(find_bundle(word))) for word in bundles]
    if as_json:
        console.print_json({"bundles": facts})
        return
    from coreai_recipes.report.page.writing import page_of

    page = page_of(facts)
    try:
        out.write_text(page, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {(error.strerror or str(error)).lower()}") from None
    print(f"{out}  {len(page.encode()) / 1e6:.2f} MB")
