"""The command line: how words become a command, and how help is drawn."""

import logging
import os
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from coreai_recipes.errors import UserError
from coreai_recipes.terminal.streams import drawing

# typer carries click with it since 0.20, so that click's own class is not what is raised
ClickException: type[Exception] = next(each for each in typer.BadParameter.__mro__ if each.__name__ == "ClickException")


class _Drawn:
    """Help that is drawn in colour, and says of no flag that it is a `<bool>`."""

    def get_params(self, ctx: Any) -> Any:
        return untyped(super().get_params(ctx))  # type: ignore[misc]

    def format_help(self, ctx: Any, formatter: Any) -> None:
        with redirect_stdout(drawing(sys.stdout)):
            super().format_help(ctx, formatter)  # type: ignore[misc]


class Command(_Drawn, TyperCommand):
    """A command."""


class Group(_Drawn, TyperGroup):
    """Commands below one word."""


class Commands(Group):
    """All of them; `--plugin` may stand before a command or behind it."""

    def parse_args(self, ctx: Any, args: list[str]) -> Any:
        return super().parse_args(ctx, plugins_first(args))

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (EOFError, OSError) as error:
            raise _Escaped from error


def untyped(parameters: list[Any]) -> list[Any]:
    """The parameters, without a type in the help of those that are a flag, or an argument with a name of its own."""
    for each in parameters:
        if getattr(each, "is_flag", False) or each.param_type_name == "argument":
            each.display_type_rich = lambda ctx: None
    return parameters


class _Escaped(Exception):
    """Caused by what a command raised and typer would answer in its own way: any EOFError, any pipe that broke."""


def execute(arguments: list[str]) -> int:
    """Run one command line; its exit status. What is wrong with the words themselves is said here, all else raised."""
    # it warns of what it cannot load on this system, which nothing here needs
    logging.getLogger("coremltools").setLevel(logging.ERROR)
    try:
        os.getcwd()
    except OSError:  # torch ends the process for it, with a message about its own files
        raise UserError("the working directory no longer exists: change to another directory") from None
    command = typer.main.get_command(app)
    try:
        return command.main(arguments, prog_name="recipe", standalone_mode=False) or 0
    except _Escaped as escaped:
        raise escaped.__cause__ or escaped from None
    except ClickException as error:
        ctx: Any = getattr(error, "ctx", None)
        said = error.format_message()  # type: ignore[attr-defined]
        if said:  # not the help that stands for a command
            path = ctx.command_path if ctx else "recipe"
            said = said.replace(": Value error, ", ": ")  # typer's, of a word that is none of several
            print(f"{path}: {said}\n`{path} --help` lists its arguments and options", file=sys.stderr)
        return 2


def plugins_first(arguments: list[str]) -> list[str]:
    """The arguments of a command line, every `--plugin FILE` before the command."""
    plugins: list[str] = []
    others: list[str] = []
    words = iter(arguments)
    for word in words:
        if word == "--":
            others += [word, *words]
        elif word == "--plugin":
            plugins += [word, *(file for file in (next(words, None),) if file is not None)]
        else:
            (plugins if word.startswith("--plugin=") else others).append(word)
    return [*plugins, *others]


app = typer.Typer(
    name="recipe",
    cls=Commands,
    help="Turn language models into Core ML packages for the Apple Neural Engine, verified against transformers.",
    no_args_is_help=True,
    add_completion=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)


@app.callback(invoke_without_command=True)
def _options(
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
    plugins: Annotated[
        list[Path] | None,
        typer.Option(
            "--plugin", metavar="FILE", help="Load a plugin with kinds of your own. Repeatable, also after the command."
        ),
    ] = None,
) -> None:
    for file in plugins or ():
        from coreai_recipes.recipe.plugins import load_plugin

        load_plugin(file)
    if version:
        from importlib.metadata import version as installed_version

        print(installed_version("coreai-recipes"))
        raise typer.Exit
