"""`recipe families`: what `recipe new` reads."""

from typing import Any

from coreai_recipes.commands.options import JsonOption


def families(as_json: JsonOption = False) -> None:
    """List the model families that `recipe new` reads."""
    from coreai_recipes.planning.authoring import family_rows
    from coreai_recipes.report import console

    rows = family_rows()
    if as_json:
        console.print_json(rows)
        return
    cells = [
        (row["family"], row["about"], _verified(row["verified"]), ", ".join(row["recipes"]) or "-") for row in rows
    ]
    console.print_table(("family", "what it is", "verified with", "built-in recipes"), cells)
    print("verified: PSNR / SNR_min in dB of a small random model of every mechanism, by its torch and package stages")


def _verified(found: dict[str, Any] | None) -> str:
    if found is None:
        return "-"
    torch, package = (" / ".join(f"{figure:.0f}" for figure in found[stage]) for stage in ("torch", "package"))
    return f"transformers {found['transformers']}: torch {torch}, package {package}"
