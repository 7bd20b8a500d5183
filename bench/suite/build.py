"""A whole build beside what a user must do today for the same package: time and peak memory.

Both read the same checkpoint of Qwen3-0.6B's shape (28 layers, vocabulary 151936, random weights) and write `prefill`
of 64 tokens and `decode` at context 2048. The baseline is `bench.children.naive_export`.
"""

from collections.abc import Mapping
from pathlib import Path
from statistics import median

from bench import child
from bench.options import Options
from bench.report import Result, Target, gigabytes, per_second

LAYERS, CONTEXT, PREFILL = 28, 2048, 64
BASELINE, EMPTY, FULL = "the usual way", "recipe build, empty cache", "recipe build, full cache"
IMPORTS = ("torch", "coremltools", "transformers", "pydantic")


def measure(options: Options) -> Result:
    checkpoint = options.checkpoint(LAYERS)
    runs: dict[str, list[child.Finished]] = {BASELINE: [], EMPTY: [], FULL: []}
    with options.scratch() as scratch:
        build(checkpoint, Path(scratch), cache="full")  # fills that cache, and the system's with the weights
        for turn in range(max(options.repeats, options.baseline_repeats)):
            if turn < options.repeats:
                runs[EMPTY].append(build(checkpoint, Path(scratch), cache=f"empty-{turn}"))
                runs[FULL].append(build(checkpoint, Path(scratch), cache="full"))
            if turn < options.baseline_repeats:
                runs[BASELINE].append(convert_naively(checkpoint, options))
        imports = child.import_seconds(profiled_build(checkpoint, Path(scratch)).stderr, IMPORTS)
    return describe(runs, imports)


def build(checkpoint: Path, scratch: Path, cache: str, env: Mapping[str, str] | None = None) -> child.Finished:
    """One `recipe build`; its bundle replaces the last one, as a user's does."""
    command = [child.RECIPE, "build", "qwen3-0.6b", "--checkpoint", str(checkpoint), "--out", str(scratch / "dist")]
    command += ["--set", f"export.context={CONTEXT}", "--no-verify", "--json"]
    return child.run(command, {"RECIPE_CACHE": str(scratch / cache), **(env or {})})


def profiled_build(checkpoint: Path, scratch: Path) -> child.Finished:
    """A build with an empty cache, apart from those that are compared: timing the imports takes time itself."""
    return build(checkpoint, scratch, "profiled", {"PYTHONPROFILEIMPORTTIME": "1"})


def convert_naively(checkpoint: Path, options: Options) -> child.Finished:
    with options.scratch() as out:
        return child.run(child.module("naive_export", checkpoint, out, CONTEXT, PREFILL))


def describe(runs: Mapping[str, list[child.Finished]], imports: Mapping[str, float]) -> Result:
    seconds = {name: median(run.seconds for run in found) for name, found in runs.items()}
    peaks = {name: median(run.peak_bytes for run in found) for name, found in runs.items()}
    processor = {name: median(run.processor_seconds for run in found) for name, found in runs.items()}
    result = Result(
        f"build: Qwen3-0.6B's shape, {LAYERS} layers, context {CONTEXT}, both functions",
        ("what", ">s", ">processor s", ">peak GB", ">faster", ">memory", "steps, s"),
    )
    for name, found in runs.items():
        steps = {step: median(run.result["seconds"][step] for run in found) for step in found[0].result["seconds"]}
        faster, less = seconds[BASELINE] / seconds[name], peaks[BASELINE] / peaks[name]
        result.rows.append(
            (
                name,
                per_second(seconds[name]),
                per_second(processor[name]),
                gigabytes(peaks[name]),
                f"{faster:.1f} x",
                f"1/{less:.1f}",
                ", ".join(f"{step} {per_second(taken)}" for step, taken in steps.items()),
            )
        )
        result.figures[name] = {"seconds": seconds[name], "peak_bytes": peaks[name], "steps": steps}
        result.figures[name]["runs"] = [{"seconds": run.seconds, "peak_bytes": run.peak_bytes} for run in found]
    result.figures["imports"] = dict(imports)
    shown = ", ".join(f"{name} {per_second(taken)}" for name, taken in imports.items())
    counts = ", ".join(f"{name} {len(found)}" for name, found in runs.items())
    result.notes = [
        f"imports of one more build with an empty cache, each with what it imports first, s: {shown}",
        f"runs, in turn, the median shown: {counts}",
    ]
    smaller = peaks[BASELINE] / max(peaks[EMPTY], peaks[FULL])
    result.targets = [
        Target("empty cache, faster than the usual way", seconds[BASELINE] / seconds[EMPTY], 21, at_least=True),
        Target("full cache, faster than the usual way", seconds[BASELINE] / seconds[FULL], 38, at_least=True),
        Target("less peak memory than the usual way", smaller, 25, at_least=True),
    ]
    return result
