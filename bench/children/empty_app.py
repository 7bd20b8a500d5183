"""A typer application that does nothing: the least that a command line of this making can take."""

import typer

app = typer.Typer(name="empty", help="Nothing.", no_args_is_help=True, pretty_exceptions_enable=False)


@app.command()
def nothing() -> None:
    """Do nothing."""


if __name__ == "__main__":
    app()
