"""Starts the command line from a checkout: `python cli.py list` is `recipe list`."""

from coreai_recipes.cli import script

if __name__ == "__main__":
    script()
