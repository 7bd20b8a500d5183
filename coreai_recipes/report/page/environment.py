"""How pages are made of templates: what a bundle or a table says is text there, whatever it holds."""

from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent


def environment() -> Any:
    """Jinja's, of the templates in this folder."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def style() -> Any:
    """The style of all pages."""
    from markupsafe import Markup

    return Markup((FOLDER / "page.css").read_text())
