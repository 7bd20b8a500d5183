"""`python -m bench [NAME...]`: measure, print the tables, and say of each target whether it is met."""

import json
import os
import sys
from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from bench.child import ChildError
from bench.options import SMOLLM2, Options, default_folder, default_smollm2
from bench.texts import COMMAND

BENCHMARKS = (
    "startup",
    "build",
    "coreai",
    "coreai_models",
    "proof",
    "layers",
    "calls",
    "decode",
    "fidelity",
    "palettes",
    "gemma4_tiny_bits",
    "smollm2_bits",
    "forms",
    "experts",
    "plain",
    "e2b",
    "e2b_bits",
)
COMPRESSION = ("palettes", "gemma4_tiny_bits", "smollm2_bits", "e2b_bits")
GROUPS = {"gemma": ("forms", "experts", "e2b"), "compression": COMPRESSION}
LARGE = ("e2b", "e2b_bits")
NAMES = (*BENCHMARKS, *GROUPS)


def main(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help=", ".join(NAMES))] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Runs of what is ours; the median is shown.")] = 3,
    baseline_repeats: Annotated[int, typer.Option(min=1, help="Runs of `build`'s baseline, minutes each.")] = 1,
    smollm2: Annotated[
        Path | None, typer.Option(help=f"SmolLM2-135M-Instruct, a folder or a GGUF; else $SMOLLM2, else {SMOLLM2}.")
    ] = None,
    folder: Annotated[Path | None, typer.Option(help="Keeps the checkpoints that are made (3 GB).")] = None,
    anemll: Annotated[
        Path | None, typer.Option(help="A checkout of ANEMLL, whose converter `calls` measures beside ours.")
    ] = None,
    coreai_models: Annotated[
        Path | None,
        typer.Option(help="A checkout of coreai-models, whose exporter `coreai_models` measures beside ours."),
    ] = None,
    licence: Annotated[Path | None, typer.Option(help="The GNU GPL version 3, else where Debian has it.")] = None,
    genesis: Annotated[Path | None, typer.Option(help=f"What `{COMMAND}` prints, else that.")] = None,
    skip_e2b: Annotated[bool, typer.Option("--skip-e2b", help="Without the full-size E2B: 30 GB, minutes.")] = False,
    out: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="Write the figures there too; others in it stay."),
    ] = None,
) -> None:
    """Measure the figures of docs/performance.md and docs/compression.md, side by side in one run."""
    unknown = [name for name in names or () if name not in NAMES]
    if unknown:
        raise typer.BadParameter(f"{', '.join(unknown)}: the benchmarks are {', '.join(NAMES)}")
    chosen = [name for asked in names or BENCHMARKS for name in GROUPS.get(asked, (asked,))]
    if anemll is not None and not (anemll / "anemll").is_dir():
        raise typer.BadParameter(f"{anemll}: is no checkout of ANEMLL: it has no folder `anemll`")
    if coreai_models is not None and not (coreai_models / "python/src/coreai_models").is_dir():
        raise typer.BadParameter(
            f"{coreai_models}: is no checkout of coreai-models: it has no python/src/coreai_models"
        )
    if coreai_models is None and "coreai_models" in (names or ()):
        raise typer.BadParameter("coreai_models: needs --coreai-models CHECKOUT")
    where = smollm2 or default_smollm2(), folder or default_folder()
    options = Options(repeats, baseline_repeats, *where, anemll, licence, genesis, coreai_models)
    found, failed = {}, False
    for name in dict.fromkeys(chosen):
        if (name in LARGE and skip_e2b) or (name == "coreai_models" and coreai_models is None):
            continue
        before = os.getloadavg()[0]
        try:
            result = import_module(f"bench.suite.{name}").measure(options)
        except ChildError as error:
            print(f"{name} could not be measured: {error}\n", file=sys.stderr, flush=True)
            failed = True
            continue
        load = f"load average {before:.1f} before, {os.getloadavg()[0]:.1f} after, on {os.cpu_count()} processors"
        result.notes.append(load)
        result.print()
        found[name] = result.to_json()
    if out:
        others = json.loads(out.read_text()) if out.exists() else {}
        out.write_text(json.dumps(others | found, indent=2) + "\n")
    raise typer.Exit(1 if failed else 0)


if __name__ == "__main__":
    typer.run(main)
