"""The table of docs/devices.md: built-in recipes at home. `python -m tests.planning.home_table` writes it there."""

from collections.abc import Iterator
from pathlib import Path

from coreai_recipes.lint.devices import find_device
from coreai_recipes.manifest.device_report import EXAMPLE, DeviceReport, read_device_report
from coreai_recipes.planning.bounds import fit_of
from coreai_recipes.recipe import load_recipe
from coreai_recipes.storage.shorthand import with_bits

ROOT = Path(__file__).parents[2]
PAGE, REPORTS = ROOT / "docs/devices.md", ROOT / "device"
BEGIN, END = "<!-- homes: python -m tests.planning.home_table -->", "<!-- end of homes -->"

# every built-in recipe at a device that holds it, and the form that it takes there
HOMES = {
    "gemma2-2b": ("M5", None), "gemma3-1b": ("iphone-17-pro", 6), "gemma3-270m": ("iphone-15", None),
    "gemma3-4b": ("M5", None), "gemma4-26b-a4b": ("m3-max", 4), "gemma4-31b": ("m3-max", 4), "gemma4-e4b": ("M5", None),
    "gemma4-tiny": ("iphone-17-pro", None), "gemma4": ("iphone-17-pro", 4), "llama-3.2-1b": ("iphone-17-pro", 6),
    "mistral-7b": ("M5", 8), "qwen2.5-0.5b": ("iphone-15-pro", 8), "qwen3-0.6b": ("iphone-17-pro", 8),
    "qwen3-1.7b": ("iphone-17-pro", 4), "qwen3-4b": ("M5", None), "smollm2-1.7b": ("iphone-17-pro", 4),
    "smollm2-135m": ("iphone-13", None), "smollm2-360m": ("iphone-13", None), "tiny-llama": ("M1", None),
}  # fmt: skip


def reports(folder: Path = REPORTS) -> dict[str, list[DeviceReport]]:
    """By recipe, the repository's reports, `device/RECIPE/*.json`; a fixture or one without a source is none."""
    found: dict[str, list[DeviceReport]] = {}
    for path in sorted(folder.glob("*/*.json")):
        report = read_device_report(path)
        if report.device != EXAMPLE and report.source is not None:
            found.setdefault(path.parent.name, []).append(report)
    return found


def table(folder: Path = REPORTS) -> str:
    measured = reports(folder)
    head = "| recipe | device | form | GB of weights | tokens/s | on a device |"
    return "\n".join([head, "|---|---|---|--:|--:|---|", *(_row(name, measured.get(name, [])) for name in HOMES)])


def _row(name: str, measured: list[DeviceReport]) -> str:
    device, bits = HOMES[name]
    recipe = load_recipe(name) if bits is None else with_bits(load_recipe(name), bits)
    found = fit_of(recipe, find_device(device))
    most = found.most_tokens_per_second
    form = "float16" if bits is None else f"`--bits {bits}`"
    cells = (
        name,
        f"`{device}`",
        form,
        f"{sum(found.packages.values()) / 1e9:.2f}",
        "-" if most is None else f"<= {most:,.1f}",
    )
    return f"| {' | '.join((*cells, '; '.join(_said(measured))))} |".replace("|  |", "| |")


def _said(measured: list[DeviceReport]) -> Iterator[str]:
    for report in measured:
        rate = report.tokens_per_second()
        said = "runs" if rate is None else f"{rate:.1f} tokens/s"
        yield f"{said} on {report.device}, {report.os_build}, {report.date} ({report.source})"


def main() -> None:
    text = PAGE.read_text()
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    PAGE.write_text(f"{before}{BEGIN}\n{table()}\n{END}{after}")


if __name__ == "__main__":
    main()
