"""A full-size Gemma 4 E2B of random weights: built beside a `cp` of its files, and verified layer by layer.

Takes 30 GB of disk for as long as it runs: the checkpoint, then `cp`'s copy of it, then the bundle.
"""

import shutil
from pathlib import Path
from typing import Any

from bench import child
from bench.options import Options
from bench.report import Result, Target, gigabytes, per_second

NAME = "gemma4"
OVERRIDES: tuple[str, ...] = ()  # none: the size is the point
NEEDED = 30e9
TIMES_CP, AND_SECONDS = 4, 60
BUILD_PEAK, VERIFY_PEAK = 2.5e9, 8e9
STAGES = ("rotary", "torch", "package")


def measure(options: Options) -> Result:
    with options.scratch() as scratch:
        folder = Path(scratch)
        free = shutil.disk_usage(folder).free
        if free < NEEDED:
            raise child.ChildError(f"{folder}: {gigabytes(free)} GB are free and {gigabytes(NEEDED)} GB are needed")
        checkpoint, copy = folder / "checkpoint", folder / "copy"
        made = child.run(child.module("random_shards", checkpoint, NAME, *OVERRIDES))
        copied = child.run(["cp", "-r", str(checkpoint), str(copy)], result=False)
        shutil.rmtree(copy)
        command = [child.RECIPE, "build", NAME, "--checkpoint", str(checkpoint), "--out", str(folder), "--no-verify"]
        changes = [word for key in OVERRIDES for word in ("--set", key)]
        built = child.run([*command, *changes, "--json"], {"RECIPE_CACHE": str(folder / "cache")})
        command = [child.RECIPE, "verify", str(folder / NAME), "--checkpoint", str(checkpoint), "--json"]
        stages = [argument for stage in STAGES for argument in ("--stage", stage)]
        verified = child.run([*command, *stages], may_fail=True)
    return describe(made, copied, built, verified)


def describe(made: child.Finished, copied: child.Finished, built: child.Finished, verified: child.Finished) -> Result:
    size = made.result["bytes"]
    title = f"e2b: Gemma 4 E2B's shape whole, {gigabytes(size)} GB in {made.result['shards']} shards"
    result = Result(title, ("what", ">s", ">of cp", ">processor s", ">peak GB", "steps, s"))
    seconds = built.result["seconds"]
    steps = ", ".join(f"{step} {per_second(taken)}" for step, taken in seconds.items())
    runs = {"cp -r": (copied, ""), "recipe build --no-verify, empty cache": (built, steps)}
    runs["recipe verify"] = (verified, ", ".join(STAGES))
    for what, (done, how) in runs.items():
        times = f"{done.seconds / copied.seconds:.1f}"
        row = (what, per_second(done.seconds), times, per_second(done.processor_seconds), gigabytes(done.peak_bytes))
        result.rows.append((*row, how))
    allowed = TIMES_CP * copied.seconds + AND_SECONDS
    what = f"the build, beside {TIMES_CP} times cp and {AND_SECONDS} s"
    result.targets = [
        Target(what, built.seconds, allowed, at_least=False, unit="s"),
        Target("peak of the build", built.peak_bytes / 1e9, BUILD_PEAK / 1e9, at_least=False, unit="GB"),
        Target("peak of verify", verified.peak_bytes / 1e9, VERIFY_PEAK / 1e9, at_least=False, unit="GB"),
    ]
    result.notes = [f"{name}: {describe_cost(cost)}" for name, cost in costs(built).items()]
    result.notes += [describe_stage(stage) for stage in verified.result["stages"]]
    result.figures = {
        **{what: {"seconds": done.seconds, "peak_bytes": done.peak_bytes} for what, (done, _) in runs.items()},
        "steps": seconds,
        "costs": costs(built),
        "stages": verified.result["stages"],
    }
    return result


def costs(built: child.Finished) -> dict[str, dict[str, Any]]:
    """What the manifest says of each function."""
    (package,) = (entry for entry in built.result["manifest"]["packages"] if entry["role"] == "all")
    return {name: function["cost"] for name, function in package["functions"].items()}


def describe_cost(cost: dict[str, Any]) -> str:
    read = f"{gigabytes(cost['weight_bytes'])} GB of weights, {cost['state_bytes'] / 1e6:.1f} MB of states"
    return f"{cost['flops'] / 1e9:.2f} GFLOP a call, {read}"


def describe_stage(stage: dict[str, Any]) -> str:
    verdict = {True: "passed", False: "FAILED", None: "skipped"}[stage["passed"]]
    return f"verify, {stage['name']}: {verdict}, PSNR {stage['psnr_db']} dB, SNR_min {stage['snr_min_db']} dB"
