"""`recipe zoo`: many recipes in many forms, built on a cluster, and what became of them."""

import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from coreai_recipes.commands.line import Group
from coreai_recipes.commands.options import JsonOption, SchedulerOption, out_option
from coreai_recipes.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from coreai_recipes.zoo.working import Outcome

ZooArgument = Annotated[Path, typer.Argument(metavar="ZOO", help="A zoo's YAML file.", show_default=False)]
BUILD = "build"


class ZooGroup(Group):
    """`recipe zoo ZOO` is `recipe zoo build ZOO`."""

    def parse_args(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] not in (*self.commands, "--help"):
            args = [BUILD, *args]
        return super().parse_args(ctx, args)


def build(
    zoo: ZooArgument,
    scheduler: SchedulerOption = None,
    resume: Annotated[
        bool,
        typer.Option("--resume/--no-resume", help="Keep what the store has of unchanged cells, or build all anew."),
    ] = True,
    as_json: JsonOption = False,
) -> None:
    """Build and prove every cell of a zoo that its store does not have, and write its table.

    A cell that fails does not stop the others. `recipe zoo ZOO` does the same.
    """
    from coreai_recipes.report import console
    from coreai_recipes.report.zoo import print_zoo
    from coreai_recipes.zoo.loading import load_zoo
    from coreai_recipes.zoo.running import run_zoo
    from coreai_recipes.zoo.working import document

    loaded = load_zoo(zoo)
    with _told(len(loaded.cells)) as tell:
        outcomes = run_zoo(loaded, scheduler, resume, tell)
    if as_json:
        cells = [document(outcome) for outcome in outcomes]
        console.print_json({"store": loaded.store, "passed": all(_passed(each) for each in outcomes), "cells": cells})
    else:
        print_zoo([row for outcome in outcomes for row in outcome.rows])
        print(f"{loaded.store}: {_counts(outcomes)}")
    raise typer.Exit(0 if all(_passed(each) for each in outcomes) else 1)


def plan(zoo: ZooArgument, as_json: JsonOption = False) -> None:
    """Print the cells of a zoo, their bytes, memory and hours, before anything runs."""
    from coreai_recipes.report import console
    from coreai_recipes.report.zoo import print_zoo_plan
    from coreai_recipes.zoo.loading import load_zoo
    from coreai_recipes.zoo.planning import plan_zoo

    document = plan_zoo(load_zoo(zoo))
    if as_json:
        console.print_json(document)
    else:
        print_zoo_plan(document)


def table(zoo: ZooArgument, as_json: JsonOption = False) -> None:
    """Print the table of a zoo, a line for each cell; with --json every row, one for each step of a cell."""
    from coreai_recipes.report import console
    from coreai_recipes.report.zoo import print_zoo

    rows = _rows(zoo)
    if as_json:
        from coreai_recipes.zoo.rows import to_json

        console.print_json({"rows": to_json(rows)})
    else:
        print_zoo(rows)


def page(
    zoo: ZooArgument, out: Annotated[Path, out_option("FILE", "Write the page to FILE.")] = Path("gallery.html")
) -> None:
    """Write a gallery of a zoo: size against KL divergence and predicted tokens/s, by model and device.

    The page needs no network and no script.
    """
    from coreai_recipes.report.page.gallery import gallery_of

    text = gallery_of(_rows(zoo), zoo.stem)
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {(error.strerror or str(error)).lower()}") from None
    print(f"{out}  {len(text.encode()) / 1e6:.2f} MB")


def _rows(zoo: Path) -> list[dict[str, Any]]:
    from coreai_recipes.zoo.loading import load_zoo
    from coreai_recipes.zoo.store import Store
    from coreai_recipes.zoo.table import read_table

    return read_table(Store(load_zoo(zoo).store))


@contextmanager
def _told(total: int) -> "Iterator[Callable[[dict[str, Any]], None]]":
    """What tells of outcomes: a bar on a terminal, else a line for each on standard error."""
    from coreai_recipes.report import console

    done = 0
    with console.progress_bar() as progress:

        def tell(event: dict[str, Any]) -> None:
            nonlocal done
            outcome: Outcome | None = event.get("outcome")
            if outcome is None:
                return
            done += 1
            if progress is not None:
                progress("cells", min(done, total), total)
            elif not outcome.kept:
                why = "" if outcome.why is None else f": {outcome.why}"
                print(f"{event['cell']}: {outcome.status}{why}", file=sys.stderr)

        yield tell


def _counts(outcomes: "list[Outcome]") -> str:
    """`3 kept, 2 built`, and how many could not be."""
    kept = sum(outcome.kept for outcome in outcomes)
    errors = sum(outcome.status == "error" for outcome in outcomes)
    failed = f", {errors} not built" if errors else ""
    return f"{kept} kept, {len(outcomes) - kept - errors} built{failed}"


def _passed(outcome: "Outcome") -> bool:
    return outcome.status == "passed"
