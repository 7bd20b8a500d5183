"""Vega-Lite drawn as SVG, by vl-convert: Vega itself, shipped in a wheel; a page needs no script and no network."""

import re
from typing import Any

from coreai_recipes.errors import UserError

SYMBOL = re.compile(r'<(path|text|line|rect) aria-label="([^"]*)"([^>]*?role="graphics-symbol"[^>]*?)/>')
OWN_NAMES = re.compile(r'(\bid="|url\(#|href="#)')
OUTER = re.compile(r'^<svg ([^>]*?)width="([\d.]+)" height="([\d.]+)"')


def draw(spec: dict[str, Any], number: int) -> str:
    """The SVG of a chart, the `number`-th of its page: as wide as its place, each mark with what it says as a title.

    Raises UserError where vl-convert is not installed.
    """
    try:
        import vl_convert
    except ImportError:
        raise UserError("charts need vl-convert: pip install 'coreai-recipes[report]'") from None
    svg = vl_convert.vegalite_to_svg(spec)
    svg = SYMBOL.sub(r'<\1 aria-label="\2"\3><title>\2</title></\1>', svg)
    svg = OWN_NAMES.sub(rf"\g<1>chart{number}-", svg)  # several charts stand in one document
    return OUTER.sub(r'<svg \1width="\2" height="\3" style="max-width: 100%; height: auto"', svg)
