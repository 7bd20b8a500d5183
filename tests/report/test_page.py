"""The page of bundles: a mark for each datum, nothing from elsewhere, and a bundle's words as text."""

import copy
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from coreai_recipes.bundle import Bundle
from coreai_recipes.bundle.facts import facts_of
from coreai_recipes.report.page import charts
from coreai_recipes.report.page.writing import page_of

Run = Callable[..., tuple[int, str, str]]
MARK = "</title></"  # each datum's mark says what it is; axes and legends do not
HOSTILE = "</pre></title></svg></script><img src=x onerror=alert(1)>&\"'{{ 7 * 7 }}"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


@pytest.fixture(scope="module")
def facts(gemma4_tiny_bundle: Path) -> dict[str, Any]:
    """Of a bundle that is not verified; with what a verification and an audit would say of it."""
    found = facts_of(Bundle.open(gemma4_tiny_bundle))
    compared = {"stage": "torch", "psnr_db": 140.0, "snr_min_db": 110.0, "floor_db": 100.0, "snr_min_floor_db": 80.0}
    at = [(f"layers.{layer}.attention", layer, "attention") for layer in range(8)] + [("logits", None, "logits")]
    figures = [{**compared, "tensor": tensor, "layer": layer, "part": part} for tensor, layer, part in at]
    figures[0] = {**figures[0], "psnr_db": "inf"}  # identical: no dB to draw
    stage = {"name": "torch", "passed": True, "psnr_db": 140.0, "snr_min_db": 110.0, "floor_db": 100.0, "detail": {}}
    ranges = [{"function": "decode", "layer": layer, "largest": 10.0 + layer, "value": "x"} for layer in range(8)]
    return {
        **found,
        "figures": figures,
        "report": {"passed": True, "stages": [stage]},
        "ranges": ranges,
        "audited": {"prompts": 2, "positions": 30},
    }


@cache
def drawn(text: str) -> int:
    from coreai_recipes.report.page.drawing import draw

    return draw(json.loads(text), 1).count(MARK)


def marks(spec: charts.Spec | None) -> int:
    assert spec is not None
    return drawn(json.dumps(spec))


class Elements(HTMLParser):
    """The elements of a page, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text += data


def test_every_datum_is_a_mark(facts: dict[str, Any]) -> None:
    assert marks(charts.layers_chart(facts)) == len(facts["layers"])
    assert marks(charts.ranges_chart(facts)) == len(facts["ranges"])
    parameters = marks(charts.tensors_chart(facts))
    assert parameters == len(facts["by_tensor"])
    # two figures of nine tensors, of which one is identical
    assert marks(charts.decibels_chart(facts, "torch")) == 2 * 9 - 1
    assert charts.decibels_chart(facts, "package") is None
    assert charts.loss_chart(facts) is None


def test_a_rotary_is_drawn_as_the_module_turns(facts: dict[str, Any]) -> None:
    turns = facts["kinds"]["full"]["turns"]
    assert len(turns) == 128
    assert [each["with"] for each in turns[:2]] == [64, 65]  # proportional: over the whole head
    assert [each["turns"] for each in turns] == [(index % 64) < 16 for index in range(128)]
    assert turns[0]["angle"] == pytest.approx(1.0)
    sliding = facts["kinds"]["sliding"]["turns"]
    assert [each["with"] for each in sliding] == [(index + 16) % 32 for index in range(32)]
    assert marks(charts.turns_chart(turns)) == 128


def test_a_page_needs_nothing_else_and_is_small(facts: dict[str, Any]) -> None:
    page = page_of([facts])
    found = Elements(page)
    assert not {"script", "iframe", "img", "object", "image"} & set(found.tags)
    loads = [value for key, value in found.attributes if key in ("src", "href", "srcset") and value]
    assert all(value.startswith(("#", "data:")) for value in loads), loads
    assert "url(http" not in page
    assert len(page.encode()) < 3_000_000
    for said in ("Against transformers", "Ranges", "Weights", "Rules of the engine", "Plan", "On a device", "Recipe"):
        assert said in found.text
    assert "every figure on a device: there is no device report" in found.text
    assert "prefers-color-scheme: dark" in page
    assert "@media print" in page


def test_what_a_bundle_says_is_text(facts: dict[str, Any]) -> None:
    hostile = copy.deepcopy(facts)
    hostile["name"] = hostile["checkpoint"] = hostile["recipe"] = HOSTILE
    hostile["versions"] = {HOSTILE: HOSTILE}
    hostile["kinds"] = {HOSTILE: hostile["kinds"]["full"]}
    hostile["layers"] = [HOSTILE] * 8
    hostile["by_tensor"][0] |= {"name": HOSTILE, "part": HOSTILE, "form": HOSTILE}
    hostile["figures"][1] |= {"tensor": HOSTILE, "part": HOSTILE}
    hostile["ranges"][0] |= {"value": HOSTILE, "function": HOSTILE}
    hostile["lint"]["findings"][0] |= {"place": HOSTILE, "message": HOSTILE}
    page = page_of([hostile])
    found = Elements(page)
    assert not {"script", "img"} & set(found.tags)
    assert not [key for key, _ in found.attributes if key.startswith("on")]
    assert "<img" not in page
    assert HOSTILE in found.text


def test_two_bundles_stand_side_by_side(facts: dict[str, Any]) -> None:
    other = {**copy.deepcopy(facts), "name": "the-other"}
    page = page_of([facts, other])
    assert page.count("<h1>") == 2
    assert "the-other" in Elements(page).text
    names = re.findall(r'\bid="([^"]+)"', page)
    assert len(names) == len(set(names))


def test_device_reports_stand_on_the_page(facts: dict[str, Any]) -> None:
    called = {"load_seconds": 1.5, "calls": 20, "median_ms": 20.0, "placed": {"engine": 90, "gpu": 0, "cpu": 2}}
    report = {
        "device": "example", "chip": "example", "os_build": "24A435", "date": "2026-11-28", "source": None,
        "functions": {"decode": called}, "footprint_bytes": None, "tokens_per_second": 50.0, "bounds": None,
    }  # fmt: skip
    text = Elements(page_of([{**facts, "device_reports": [report]}])).text
    assert "example: example, 24A435, 2026-11-28" in text
    assert "50.0 tokens/s" in text


def test_the_command_writes_a_page_or_its_facts(tiny_bundle: Path, tmp_path: Path, run: Run) -> None:
    page = tmp_path / "page.html"
    status, out, error = run("report", tiny_bundle, "-o", page)
    assert (status, error) == (0, "")
    assert out.startswith(f"{page}  0.")
    assert page.read_text().startswith("<!doctype html>")
    (document,) = json.loads(run("report", tiny_bundle, "--json")[1])["bundles"]
    assert document["name"] == "tiny-llama"
    assert run("report", tiny_bundle, "-o", tmp_path / "no/page.html")[::2] == (
        2,
        f"{tmp_path}/no/page.html: cannot be written: no such file or directory\n",
    )


def test_a_package_that_was_changed_gets_no_page(tiny_bundle: Path, tmp_path: Path, run: Run) -> None:
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path / "cut"))
    weights = "model.mlpackage/Data/com.apple.CoreML/weights/weight.bin"
    os.truncate(bundle / weights, 1000)
    status, _, error = run("report", bundle, "--out", tmp_path / "page.html")
    assert (status, error) == (2, f"{bundle}: modified since it was built: {weights}\n")
    assert not (tmp_path / "page.html").exists()


def test_without_the_library_the_command_says_how_to_get_it(
    tiny_bundle: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "vl_convert", None)
    status, _, error = run("report", tiny_bundle, "-o", tmp_path / "page.html")
    assert (status, error) == (
        2,
        "charts need vl-convert: pip install 'coreai-recipes[report]'\n",
    )


def test_a_browser_shows_the_page_without_a_complaint(facts: dict[str, Any], tmp_path: Path) -> None:
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        pytest.skip(f"no browser was found: {', '.join(BROWSERS)}")
    page = tmp_path / "page.html"
    page.write_text(page_of([facts, facts]))
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/profile"]
    shown = subprocess.run(
        [*command, "--enable-logging=stderr", "--window-size=390,800", "--dump-dom", page.as_uri()],
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    assert "CONSOLE" not in shown.stderr, shown.stderr
    assert shown.stdout.count(MARK) == page.read_text().count(MARK) > 500
