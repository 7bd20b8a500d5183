"""A zoo's gallery: one page of its table, with size against loss against speed, that needs no script and no network."""

from collections.abc import Mapping, Sequence
from typing import Any

from coreai_recipes.report.page import charts
from coreai_recipes.report.page.drawing import draw
from coreai_recipes.report.page.environment import environment, style
from coreai_recipes.report.zoo import by_cell, cell_line, form_words, words_of

COLUMNS = ("recipe", "bits", "device", "format", "verdict", "MB", "KL, nats", "tokens/s, at most", "seconds")
NUMBERS = (1, 5, 6, 7, 8)


def gallery_of(rows: Sequence[Mapping[str, Any]], name: str) -> str:
    """The HTML of a zoo's table; `name` is what the zoo is called."""
    from markupsafe import Markup

    cells = by_cell(rows)
    drawn = [Markup(draw(spec, number)) for number, spec in enumerate(gallery_charts(cells)) if spec is not None]
    template = environment().get_template("gallery.html")
    page: str = template.render(
        title=name,
        style=style(),
        charts=drawn,
        columns=COLUMNS,
        numbers=NUMBERS,
        rows=[(cell_line(cell), _note(cell)) for cell in cells],
        failed=[(words_of(cell), cell["why"]) for cell in cells if cell["passed"] is False],
        passed=sum(cell["passed"] is True for cell in cells),
    )
    return page


def _note(cell: Mapping[str, Any]) -> str:
    """What the weights of a cell that passed were, where they were no checkpoint's."""
    return (cell["why"] or "") if cell["passed"] else ""


def gallery_charts(cells: Sequence[Mapping[str, Any]]) -> list[charts.Spec | None]:
    """Sizes by recipe, size against loss, and size against speed: None where there is no figure for it."""
    points = _points(cells)
    return [
        charts.sizes_chart(points),
        charts.cells_chart(_having(points, "kl"), "kl", "KL divergence, nats", log=True),
        charts.cells_chart(_having(points, "tokens_per_second"), "tokens_per_second", "tokens/s, at most", log=True),
    ]


def _points(cells: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The cells that passed, as charts show them."""
    return [
        {
            "MB": cell["bytes"] / 1e6,
            "kl": cell["kl"],
            "tokens_per_second": cell["tokens_per_second"],
            "recipe": cell["recipe"],
            "bits": form_words(cell)[0],
            "where": cell["device"] or cell["format"],
            "says": f"{words_of(cell)}: {', '.join(cell_line(cell)[4:8])}",
        }
        for cell in cells
        if cell["passed"] and cell["bytes"]
    ]


def _having(points: Sequence[Mapping[str, Any]], figure: str) -> list[Mapping[str, Any]]:
    """Those with a figure; of a loss of nothing there is no logarithm."""
    return [point for point in points if point[figure] and point[figure] > 0]
