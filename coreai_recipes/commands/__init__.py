"""The commands, a file each: what a command takes and prints. The work is done elsewhere, imported late."""

import typer

from coreai_recipes.commands import cache, zoo
from coreai_recipes.commands.audit import audit
from coreai_recipes.commands.build import build
from coreai_recipes.commands.chat import chat
from coreai_recipes.commands.compress import compress
from coreai_recipes.commands.device_report import device_report
from coreai_recipes.commands.diff import diff
from coreai_recipes.commands.evaluate import evaluate
from coreai_recipes.commands.families import families
from coreai_recipes.commands.line import Command, Group, app, execute
from coreai_recipes.commands.lint import lint_
from coreai_recipes.commands.list import list_
from coreai_recipes.commands.new import new
from coreai_recipes.commands.plan import plan
from coreai_recipes.commands.report import report_
from coreai_recipes.commands.run import run
from coreai_recipes.commands.schema import schema
from coreai_recipes.commands.serve import serve
from coreai_recipes.commands.show import show
from coreai_recipes.commands.validate import validate
from coreai_recipes.commands.verify import verify

__all__ = ["execute"]

for command in (
    *(
        list_,
        show,
        validate,
        new,
        families,
        diff,
        plan,
        compress,
        lint_,
        build,
        verify,
        evaluate,
        audit,
        device_report,
        report_,
        run,
        chat,
        serve,
        schema,
    ),
):  # in the order of the help
    app.command(command.__name__.rstrip("_").replace("_", "-"), cls=Command)(command)

caches = typer.Typer(cls=Group, help="List or remove what builds keep on this disk.", no_args_is_help=True)
for command in (cache.list_, cache.clean):
    caches.command(command.__name__.rstrip("_"), cls=Command)(command)
app.add_typer(caches, name="cache")

zoos = typer.Typer(cls=zoo.ZooGroup, help="Build many recipes in many forms on a cluster.", no_args_is_help=True)
for of_zoo in (zoo.build, zoo.plan, zoo.table, zoo.page):
    zoos.command(of_zoo.__name__, cls=Command)(of_zoo)
app.add_typer(zoos, name="zoo")
