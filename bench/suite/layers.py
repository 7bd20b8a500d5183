"""How a build's time and peak memory grow with the number of layers: memory must not."""

from pathlib import Path
from statistics import median

from bench import child
from bench.options import Options
from bench.report import Result, Target, gigabytes, per_second
from bench.suite.build import CONTEXT, LAYERS

DEPTHS = (4, 8, 16, LAYERS)
FLAT = 1.1  # what page tables, headers and the program itself may add


def measure(options: Options) -> Result:
    runs: dict[int, list[child.Finished]] = {depth: [] for depth in DEPTHS}
    with options.scratch() as scratch:
        for turn in range(options.repeats):
            for depth in DEPTHS:
                runs[depth].append(build(depth, options, Path(scratch), cache=f"{depth}-{turn}"))
    peaks = {depth: median(run.peak_bytes for run in found) for depth, found in runs.items()}
    result = Result(
        "layers: Qwen3-0.6B's shape, cut to fewer layers, an empty cache",
        (">layers", ">weights GB", ">s", ">peak GB", ">package GB"),
    )
    for depth, found in runs.items():
        seconds = median(run.seconds for run in found)
        package = found[0].result["bytes"]
        weights = (options.checkpoint(depth) / "model.safetensors").stat().st_size
        result.rows.append(
            (str(depth), gigabytes(weights), per_second(seconds), gigabytes(peaks[depth]), gigabytes(package))
        )
        result.figures[str(depth)] = {"seconds": seconds, "peak_bytes": peaks[depth], "bytes": package}
    growth = peaks[DEPTHS[-1]] / peaks[DEPTHS[0]]
    what = f"peak memory of {DEPTHS[-1]} layers, of that of {DEPTHS[0]}"
    result.targets = [Target(what, growth, FLAT, at_least=False)]
    result.notes = [f"median of {options.repeats}, in turn"]
    return result


def build(depth: int, options: Options, scratch: Path, cache: str) -> child.Finished:
    command = [child.RECIPE, "build", "qwen3-0.6b", "--checkpoint", str(options.checkpoint(depth))]
    command += ["--out", str(scratch / "dist"), "--set", f"export.context={CONTEXT}", "--no-verify", "--json"]
    command += ["--set", f"model.layers=[{{repeat: {depth}, of: [full]}}]"]
    return child.run(command, {"RECIPE_CACHE": str(scratch / cache)})
