"""`recipe build`: a bundle, and its proof."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from coreai_recipes.commands.options import (
    AdapterOption,
    BitsOption,
    CheckpointOption,
    DeviceOption,
    DraftOption,
    JsonOption,
    OverridesOption,
    RecipeArgument,
    out_option,
    read_adapters,
)


def build(
    recipe: RecipeArgument,
    checkpoint: CheckpointOption = None,
    draft: DraftOption = None,
    out: Annotated[Path, out_option("DIR", "Write the bundle to DIR/NAME.")] = Path("dist"),
    overrides: OverridesOption = None,
    bits: BitsOption = None,
    device: DeviceOption = None,
    adapter: AdapterOption = None,
    no_verify: Annotated[bool, typer.Option("--no-verify", help="Skip verification.")] = False,
    no_cache: Annotated[
        bool, typer.Option("--no-cache", help="Convert every fragment again instead of using the cache.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Build a bundle and verify it.

    With --device, the device's rules choose what --bits and --set do not: the
    form of the weights, the layouts, the tokens of a prefill. All are printed.
    """
    from coreai_recipes import bundle
    from coreai_recipes.report import console
    from coreai_recipes.report.rules import print_lint
    from coreai_recipes.report.verdict import print_report

    try:
        with console.progress_bar() as progress:
            built = bundle.build(
                recipe,
                checkpoint,
                out,
                draft=draft,
                overrides=overrides or (),
                bits=bits,
                device=device,
                adapters=read_adapters(adapter),
                verified=not no_verify,
                cached=not no_cache,
                progress=progress,
            )
    except bundle.VerificationError as failure:
        report = failure.report.to_json()
        if as_json:
            console.print_json({"path": None, "report": report, "notes": list(failure.notes)})
        else:
            print_report(report)
            console.print_notes(failure.notes)
        failed = [stage for stage in report["stages"] if stage["passed"] is False]
        over = [words for stage in failed for words in stage["detail"].get("over_budget", ())]
        if len(failed) != 1 or not over:
            over.append("the package differs from its reference; no bundle was written")
        else:
            over.append("no bundle was written")
        print("\n".join(over), file=sys.stderr)
        raise typer.Exit(1) from None
    except bundle.OverBudget as failure:
        if as_json:
            console.print_json({"path": None, "over_budget": str(failure)})
        print(f"{failure}\nno bundle was written", file=sys.stderr)
        raise typer.Exit(1) from None
    except bundle.RuleError as failure:
        if as_json:
            console.print_json({"path": None, "notes": list(failure.notes), **failure.lint.to_json()})
        else:
            print_lint(failure.lint.to_json(), ("error",))
            console.print_notes(failure.notes)
        print(
            "the package breaks rules of the device; no bundle was written (export.allow lets a rule pass)",
            file=sys.stderr,
        )
        raise typer.Exit(1) from None
    if as_json:
        facts = {
            "path": str(built.path),
            "bytes": built.bytes,
            "weights": built.weights,
            "seconds": built.seconds,
            "notes": list(built.notes),
        }
        lint = {} if built.lint is None else built.lint.to_json()
        console.print_json({**facts, "manifest": built.manifest, "report": built.report, **lint})
        return
    if not no_verify:
        print_report(built.report)
    if built.lint is not None:
        print_lint(built.lint.to_json(), ("error", "warning"))
    if bits is not None:
        from coreai_recipes.bundle.opened import recipe_of
        from coreai_recipes.recipe.loader import compress_text

        print(compress_text(recipe_of(built.path)), end="")
    _print_built(built)


def _print_built(bundle: Any) -> None:
    """What a build says at its end."""
    from coreai_recipes.report import console
    from coreai_recipes.report.words import weights_line

    console.print_notes(bundle.notes)
    if bundle.left_out:
        print(f"left out: {', '.join(bundle.left_out)}")
    seconds = bundle.seconds or {}
    steps = ", ".join(f"{step} {taken:.1f} s" for step, taken in seconds.items() if taken >= 0.05)
    if bundle.weights is not None:
        print(weights_line(bundle.described.package_format, bundle.weights))
    print(f"{bundle.path}  {bundle.bytes / 1e6:.1f} MB" + (f"  ({steps})" if steps else ""))
