"""A full-size Gemma 4 E2B of random weights in palettes of 4 bits without a text; and its two widest layers fitted.

Takes 13 GB of disk for as long as it runs.
"""

import shutil
from pathlib import Path

from bench import child
from bench.options import Options
from bench.report import Result, Target, gigabytes, per_second
from bench.suite.e2b import NAME

NEEDED = 16e9
SECONDS, PEAK, FIT_PEAK = 300.0, 2.5e9, 4e9
TOKENS = 16_384
LAYERS = 35


def measure(options: Options) -> Result:
    fitted = child.run(child.module("fit_layers", TOKENS))
    with options.scratch() as scratch:
        folder = Path(scratch)
        free = shutil.disk_usage(folder).free
        if free < NEEDED:
            raise child.ChildError(f"{folder}: {gigabytes(free)} GB are free and {gigabytes(NEEDED)} GB are needed")
        child.run(child.module("random_shards", folder / "checkpoint", NAME))
        command = [child.RECIPE, "build", NAME, "--checkpoint", str(folder / "checkpoint"), "--out", str(folder)]
        command += ["--bits", "4", "--set", "compress.calibration=null", "--no-verify", "--json"]
        built = child.run(command, {"RECIPE_CACHE": str(folder / "cache")})
    return describe(built, fitted)


def describe(built: child.Finished, fitted: child.Finished) -> Result:
    result = Result("e2b_bits: Gemma 4 E2B's shape in 4 bits", ("what", ">s", ">processor s", ">peak GB", "of it"))
    steps = ", ".join(f"{step} {per_second(taken)}" for step, taken in built.result["seconds"].items())
    layers = fitted.result["fit_seconds"]
    each = ", ".join(f"{taken:.0f}" for taken in layers)
    for what, done, how in (
        ("recipe build --bits 4, no text", built, f"{steps}; {gigabytes(built.result['bytes'])} GB"),
        (f"two widest layers fitted to {TOKENS:,} tokens", fitted, f"processor s: {each}"),
    ):
        row = per_second(done.seconds), per_second(done.processor_seconds), gigabytes(done.peak_bytes)
        result.rows.append((what, *row, how))
    whole = LAYERS * max(layers)
    result.notes = [f"all {LAYERS} layers fitted, were each as wide as the widest: {whole / 60:.0f} processor minutes"]
    result.targets = [
        Target("4 bits without a text", built.seconds, SECONDS, at_least=False, unit="s"),
        Target("its peak", built.peak_bytes / 1e9, PEAK / 1e9, at_least=False, unit="GB"),
        Target("peak of fitting the widest layers", fitted.peak_bytes / 1e9, FIT_PEAK / 1e9, False, "GB"),
    ]
    result.figures = {
        "build": {
            "seconds": built.seconds,
            "processor_seconds": built.processor_seconds,
            "peak_bytes": built.peak_bytes,
            "bytes": built.result["bytes"],
            "steps": built.result["seconds"],
        },
        "fit": {**fitted.result, "peak_bytes": fitted.peak_bytes, "processor_seconds": fitted.processor_seconds},
    }
    return result
