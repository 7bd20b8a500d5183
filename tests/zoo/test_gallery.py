"""The table of a zoo as it is shown: a line for each cell, and the gallery."""

import math
from pathlib import Path

import pytest
from zoos import write_zoo

from coreai_recipes.commands.zoo import page
from coreai_recipes.errors import UserError
from coreai_recipes.report.page.gallery import gallery_charts, gallery_of
from coreai_recipes.report.zoo import by_cell, cell_line, print_zoo
from coreai_recipes.zoo.cells import Cell
from coreai_recipes.zoo.metering import Spent
from coreai_recipes.zoo.rows import Row, row
from coreai_recipes.zoo.store import Store
from coreai_recipes.zoo.table import read_table, write_table


def cell(bits: int, device: str | None = "M5", recipe: str = "small") -> Cell:
    return Cell(recipe, recipe, recipe, None, bits, device, "coreml")


def rows_of(each: Cell, size: int, kl: float | None, speed: float | None, passed: bool = True) -> list[Row]:
    return [
        row(each, "key", "plan", bytes=size, bits_per_weight=4.0, tokens_per_second=speed),
        row(each, "key", "build", Spent(2.0, 3.0, 5), passed=passed, why=None if passed else "too <large>"),
        row(each, "key", "torch", passed=True, psnr_db=math.inf, why=None),
        row(each, "key", "compressed", passed=None if kl is None else True, kl=kl),
    ]


ROWS = [
    *rows_of(cell(16), 8_000_000, None, 20.0),
    *rows_of(cell(4), 2_000_000, 0.25, 80.0),
    *rows_of(cell(2), 1_000_000, 1.5, 160.0, passed=False),
]


def test_a_cell_is_one_line_of_the_figures_of_its_steps() -> None:
    lines = [cell_line(each) for each in by_cell(ROWS)]
    assert lines == [
        ("small", "16", "M5", "coreml", "passed", "8.0", "-", "20.0", "2.0"),
        ("small", "4", "M5", "coreml", "passed", "2.0", "0.25", "80.0", "2.0"),
        ("small", "2", "M5", "coreml", "FAILED", "1.0", "1.5", "160.0", "2.0"),
    ]


def test_why_a_cell_failed_stands_below_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    print_zoo(ROWS)
    assert capsys.readouterr().out.splitlines()[-2:] == [
        "small, 2 bits, M5, coreml: too <large>",
        "tokens/s: at most, by the highest rate at which the device was seen to read weights",
    ]


def test_the_gallery_draws_what_passed_and_names_what_did_not() -> None:
    sizes, loss, speed = gallery_charts(by_cell(ROWS))
    assert sizes is not None
    assert loss is not None
    assert speed is not None
    assert [(point["MB"], point["kl"]) for point in loss["data"]["values"]] == [(2.0, 0.25)]
    assert [(point["MB"], point["tokens_per_second"]) for point in speed["data"]["values"]] == [
        (8.0, 20.0),
        (2.0, 80.0),
    ]
    text = gallery_of(ROWS, "my <zoo>")
    _, speeds = sizes["layer"]
    assert [(point["recipe"], point["bits"], point["MB"]) for point in sizes["data"]["values"]] == [
        ("small", "16", 8.0),
        ("small", "4", 2.0),
    ]
    assert [point["speed"] for point in speeds["data"]["values"]] == ["20/s", "80/s"]
    assert text.count("<svg ") == 3
    assert "<title>my &lt;zoo&gt;</title>" in text
    assert "<li>small, 2 bits, M5, coreml: too &lt;large&gt;</li>" in text
    assert "<title>small, 4 bits, M5, coreml: passed, 2.0, 0.25, 80.0</title>" in text
    assert "<script" not in text


def test_a_table_without_a_figure_has_no_chart() -> None:
    sizes, *others = gallery_charts(by_cell(rows_of(cell(16, None), 8_000_000, None, None)))
    assert sizes is not None
    assert len(sizes["layer"]) == 1
    assert others == [None, None]
    assert gallery_charts([]) == [None, None, None]


def test_two_devices_have_no_speeds_beside_their_points() -> None:
    rows = [*rows_of(cell(4), 2_000_000, None, 80.0), *rows_of(cell(4, "A19 Pro"), 2_000_000, None, 50.0)]
    sizes = gallery_charts(by_cell(rows))[0]
    assert sizes is not None
    assert len(sizes["layer"]) == 1


def test_what_random_weights_lose_is_not_shown() -> None:
    rows = rows_of(cell(4), 2_000_000, 0.25, 80.0)
    for each in rows:
        each["checkpoint"] = "random weights, seed 0" if each["stage"] == "build" else None
    assert by_cell(rows)[0]["kl"] is None


def test_the_table_is_read_as_it_was_written_and_its_page_is_made_of_it(tmp_path: Path) -> None:
    path = write_zoo(tmp_path, "recipes: [tiny-llama]\n")
    with pytest.raises(UserError) as raised:
        page(path, tmp_path / "page.html")
    assert str(raised.value) == f"store {tmp_path}/store: has no table yet: `recipe zoo ZOO` writes it"
    store = Store(str(tmp_path / "store"))
    write_table(store, ROWS)
    assert read_table(store) == ROWS
    page(path, tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text() == gallery_of(ROWS, "zoo")
    store.put("table.parquet", b"something else")
    with pytest.raises(UserError, match=r"table\.parquet is no table of Parquet: run the zoo again$"):
        read_table(store)
