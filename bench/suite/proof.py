"""The proof of SmolLM2, stage by stage, as `recipe build` makes it; and the whole build, conversion included."""

from pathlib import Path
from statistics import median

from bench import child
from bench.options import Options
from bench.report import Result, gigabytes, per_second

RECIPE = "smollm2-135m"
WHOLE = "recipe build, all of it"


def measure(options: Options) -> Result:
    builds, proofs = [], []
    with options.scratch() as scratch:
        command = [child.RECIPE, "build", RECIPE, "--checkpoint", str(options.smollm2), "--out", scratch, "--json"]
        cache = {"RECIPE_CACHE": str(Path(scratch) / "cache")}
        for _ in range(options.repeats):
            builds.append(child.run(command, cache))
            proofs.append(child.run(child.module("proof_stages", Path(scratch) / RECIPE, options.smollm2)))
    return describe(builds, proofs)


def describe(builds: list[child.Finished], proofs: list[child.Finished]) -> Result:
    result = Result("proof: SmolLM2-135M, stage by stage", ("what", ">s", ">processor s", ">peak GB"))
    for name in proofs[0].result:
        seconds = median(run.result[name]["seconds"] for run in proofs)
        processor = median(run.result[name]["processor_seconds"] for run in proofs)
        result.rows.append((name, per_second(seconds), per_second(processor), ""))
        result.figures[name] = {"seconds": seconds, "processor_seconds": processor}
    for name, runs in (("the stages' process, all of it", proofs), (WHOLE, builds)):
        seconds = median(run.seconds for run in runs)
        processor, peak = median(run.processor_seconds for run in runs), median(run.peak_bytes for run in runs)
        result.rows.append((name, per_second(seconds), per_second(processor), gigabytes(peak)))
        result.figures[name] = {"seconds": seconds, "processor_seconds": processor, "peak_bytes": peak}
    result.notes = [
        f"median of {len(builds)}, in turn; the first build has an empty cache",
        "the package answers in a process of its own: a stage that asks it waits for that process, whose processor "
        "seconds are in the sums alone",
    ]
    return result
