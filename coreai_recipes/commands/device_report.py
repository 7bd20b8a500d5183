"""`recipe device-report`: what a bundle does on a device."""

from pathlib import Path
from typing import Annotated, Any

import typer

from coreai_recipes.commands.options import BundleArgument, JsonOption


def device_report(
    bundle: BundleArgument,
    file: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="FILE",
            help="A report from another machine, instead of measuring here; docs/devices.md has its form.",
        ),
    ] = None,
    device: Annotated[
        str | None, typer.Option("--device", metavar="DEVICE", help="The id of this Mac, such as M1 or m3-max.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure a bundle on this Mac, or take in a report from a device, and compare it with the bounds.

    A report has the time to load and to call each function, the placement of its
    operations by MLComputePlan, and the memory. The bundle keeps it.
    """
    from coreai_recipes.bundle import Bundle
    from coreai_recipes.bundle.device_reports import document_of, keep, take_in
    from coreai_recipes.commands.opening import find_bundle
    from coreai_recipes.report import console
    from coreai_recipes.report.device import print_device_report

    opened = Bundle.open(find_bundle(bundle))
    report = keep(opened, _measured(opened, device)) if file is None else take_in(opened, file)
    document = document_of(opened, report)
    if as_json:
        console.print_json(document)
    else:
        print_device_report(document)


def _measured(bundle: Any, device: str | None) -> Any:
    """This Mac's report."""
    from coreai_recipes.bundle.opened import identity_of
    from coreai_recipes.errors import UserError
    from coreai_recipes.lint.devices import find_device
    from coreai_recipes.manifest.device_report import DeviceReport
    from coreai_recipes.running.coreml import why_no_coreml
    from coreai_recipes.running.mac import footprint, this_mac
    from coreai_recipes.running.measuring import measure

    if bundle.described.package_format == "coreai":
        raise UserError(
            f"{bundle.path}: is in Core AI's format, and Core ML's packages alone are measured: build the same recipe "
            "with --set export.format=coreml"
        )
    reason = why_no_coreml()
    if reason is not None:
        raise UserError(f"{bundle.path}: cannot be measured here: {reason}: give a device's report by --from FILE")
    if device is None:
        raise UserError("recipe device-report: name this Mac by --device, such as M1 or m3-max (docs/lint.md)")
    before, units = footprint(), bundle.recipe.export.compute_units
    functions = measure(bundle.path, bundle.described, units)
    said = {
        **this_mac(),
        "manifest_sha256": identity_of(bundle.path),
        "device": find_device(device).id,
        "compute_units": units,
        "functions": functions,
        "footprint_bytes": footprint() - before,
    }
    return DeviceReport.model_validate(said)
