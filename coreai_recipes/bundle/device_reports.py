"""Device reports of a bundle: taken in from a file, measured on this Mac, kept in the bundle and read again."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from coreai_recipes.bundle.opened import identity_of
from coreai_recipes.errors import BundleError
from coreai_recipes.manifest.contents import DEVICE
from coreai_recipes.manifest.device_report import EXAMPLE, DeviceReport, read_device_report

if TYPE_CHECKING:
    from coreai_recipes.bundle.opened import Bundle

SHOWN = 12  # of a digest


def take_in(bundle: "Bundle", file: Path) -> DeviceReport:
    """The report in `file`, kept in the bundle. Raises BundleError for one of another bundle, or that names a device
    or a function that there is not."""
    report = read_device_report(file)
    _hold(report, bundle, str(file))
    return keep(bundle, report)


def keep(bundle: "Bundle", report: DeviceReport) -> DeviceReport:
    """The report, written into the bundle; one of the same device, system and day is replaced."""
    folder = bundle.path / DEVICE
    try:
        folder.mkdir(exist_ok=True)
        (folder / report.file_name).write_text(report.text())
    except OSError as error:
        raise BundleError(f"{folder}: cannot be written: {(error.strerror or str(error)).lower()}") from None
    return report


def reports_of(bundle: "Bundle") -> tuple[DeviceReport, ...]:
    """All that were kept, by the names of their files. Raises BundleError for one that is not the bundle's."""
    folder = bundle.path / DEVICE
    files = sorted(folder.glob("*.json")) if folder.is_dir() and not folder.is_symlink() else []
    found = []
    for file in files:
        report = read_device_report(file)
        _hold(report, bundle, str(file))
        found.append(report)
    return tuple(found)


def document_of(bundle: "Bundle", report: DeviceReport) -> dict[str, Any]:
    """A report as it is shown: with its rate, and with what the plan of the bundle's recipe bounds on the device, None
    for a device of no table."""
    from coreai_recipes.lint.devices import devices
    from coreai_recipes.planning.bounds import fit_of

    device = devices().get(report.device)
    return {
        **report.model_dump(mode="json"),
        "tokens_per_second": report.tokens_per_second(),
        "bounds": None if device is None else fit_of(bundle.recipe, device).to_json(),
    }


def _hold(report: DeviceReport, bundle: "Bundle", place: str) -> None:
    from coreai_recipes.lint.devices import devices
    from coreai_recipes.recipe.nearest import did_you_mean

    problems, own = [], identity_of(bundle.path)
    if report.manifest_sha256 != own:
        theirs = report.manifest_sha256[:SHOWN]
        problems.append(f"{place}: is of another bundle: its manifest is {theirs}..., {bundle.path}'s {own[:SHOWN]}...")
    if report.device not in devices() and report.device != EXAMPLE:
        hint = did_you_mean(report.device, devices())
        problems.append(
            f"{place}: device: {report.device!r:.80} is none that --device knows" + (f"\n  {hint}" if hint else "")
        )
    functions = bundle.described.functions
    for name in report.functions.keys() - functions.keys():
        problems.append(f"{place}: functions: the bundle has no {name}; it has {', '.join(functions)}")
    BundleError.collect(problems)
