"""SmolLM2's saved package against transformers in float32, in each precision, beside transformers' own float16."""

from pathlib import Path
from typing import Any

from bench import child
from bench.options import Options
from bench.report import Result, Target, gigabytes
from bench.suite.decode import build

PACKAGE_FLOOR, LOSS_ALLOWED = 90.0, 3.0
COLUMNS = ("what", "compared with", ">PSNR dB", ">SNR_min dB", ">top-1 %", ">positions")


def measure(options: Options) -> Result:
    with options.scratch() as scratch:
        bundle = build(options.smollm2, Path(scratch))
        command = [child.RECIPE, "verify", str(bundle), "--checkpoint", str(options.smollm2), "--json"]
        done = child.run([*command, "--stage", "package", "--stage", "package_float16"], may_fail=True)
    stages = {stage["name"]: stage for stage in done.result["stages"]}
    package, half = stages["package"], stages["package_float16"]
    result = Result("fidelity: SmolLM2-135M's saved package", COLUMNS)
    result.rows.append(("float32, the worst tensor", "our torch Decoder", *figures(package), "", ""))
    theirs = half["detail"]["transformers_float16"]
    for name, found in {
        "rounded: each result in float16": half["detail"]["rounded"],
        "transformers' own float16, same positions": theirs,
        "strict: inside an operation too": half["detail"]["strict"],
        "transformers' own float16, same positions ": half["detail"]["strict"]["transformers_float16"],
    }.items():
        top = f"{100 * found['top_1']:.1f}"
        result.rows.append((name.strip(), "transformers float32", *figures(found), top, str(found["rows"])))
    overflowed = half["detail"]["overflowed"]
    loss = decibels(theirs["psnr_db"]) - decibels(half["psnr_db"])
    result.targets = [
        Target("float32 package, PSNR", decibels(package["psnr_db"]), PACKAGE_FLOOR, at_least=True, unit="dB"),
        Target("rounded, below transformers' own float16", loss, LOSS_ALLOWED, at_least=False, unit="dB"),
        Target("operations that overflow in float16", len(overflowed), 0, at_least=False, unit="operations"),
    ]
    result.notes = [
        f"verify took {done.processor_seconds:.0f} processor s, {gigabytes(done.peak_bytes)} GB at its peak"
    ]
    result.figures = {"stages": done.result["stages"]}
    return result


def figures(found: dict[str, Any]) -> tuple[str, str]:
    return f"{decibels(found['psnr_db']):.1f}", f"{decibels(found['snr_min_db']):.1f}"


def decibels(value: float | str | None) -> float:
    """A report writes what JSON has no number for as a word: `inf`."""
    return float("nan") if value is None else float(value)
