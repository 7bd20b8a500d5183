"""What palettes of 4 bits without a text cost in processor time and memory, beside coremltools' of the same package.

SmolLM2 with its table, and Qwen3-0.6B's shape, ours alone. Ours has two functions, whose weights are encoded once.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

from bench import child
from bench.options import Options
from bench.report import Result, Target, gigabytes

SMOLLM2, QWEN3 = "SmolLM2", "Qwen3-0.6B's shape"
LAYERS = 28
WEIGHTS = {SMOLLM2: 134_479_872, QWEN3: 595_984_384}  # of matrices, the table among them
NS_A_WEIGHT, FASTER, PEAK = 60.0, 12.0, 2e9
ALONE = {"OMP_NUM_THREADS": "1"}  # threads that wait spin, which is no work
# all matrices in palettes of 4 bits, the table too, which is what coremltools is asked for
PALETTES = "compress={default: {kind: palettize, bits: 4, group: 16}, calibration: null}"


def measure(options: Options) -> Result:
    result = Result(
        "palettes: 4 bits for 16 channels without a text, processor time beyond that of the float16 build",
        ("what", ">ns a weight", ">processor s", ">peak GB", ">package MB"),
    )
    checkpoints = {SMOLLM2: ("smollm2-135m", options.smollm2), QWEN3: ("qwen3-0.6b", options.checkpoint(LAYERS))}
    theirs: list[child.Finished] = []
    for what, (recipe, checkpoint) in checkpoints.items():
        runs: dict[str, list[child.Finished]] = {"float16": [], "palettes": []}
        with options.scratch() as scratch:
            for turn in range(options.repeats + 1):  # the first compiles, and fills the cache of programs
                for how, words in (("float16", ()), ("palettes", ("--set", PALETTES))):
                    done = build(recipe, checkpoint, Path(scratch), how, words)
                    runs[how] += [done] if turn else []
            if what == SMOLLM2:
                package = Path(scratch) / "float16" / recipe / "model.mlpackage"
                theirs = [palettize(package, options) for _ in range(options.baseline_repeats)]
        add(result, what, runs)
    ours, beside = result.figures[SMOLLM2], median(run.result["processor_seconds"] for run in theirs)
    their_peak = median(run.peak_bytes for run in theirs)
    size = theirs[0].result["bytes"]
    result.rows.append(row(f"{SMOLLM2}, coremltools' palettize_weights", SMOLLM2, beside, their_peak, size))
    result.figures["coremltools"] = {"seconds": beside, "peak_bytes": their_peak, "bytes": size}
    result.figures["coremltools"]["ns_a_weight"] = 1e9 * beside / WEIGHTS[SMOLLM2]
    result.targets = [
        Target("palettes of SmolLM2", ours["ns_a_weight"], NS_A_WEIGHT, at_least=False, unit="ns a weight"),
        Target("faster than coremltools", beside / ours["more_seconds"], FASTER, at_least=True),
        Target("peak of the palettes of " + QWEN3, result.figures[QWEN3]["peak_bytes"] / 1e9, PEAK / 1e9, False, "GB"),
    ]
    result.notes = [
        f"medians of {options.repeats} builds each, in turn, behind one that compiles; coremltools "
        f"{options.baseline_repeats}"
    ]
    return result


def build(recipe: str, checkpoint: Path, scratch: Path, how: str, words: Sequence[str]) -> child.Finished:
    command = [child.RECIPE, "build", recipe, "--checkpoint", str(checkpoint), "--out", str(scratch / how)]
    command += [*words, "--no-verify", "--json"]
    return child.run(command, {"RECIPE_CACHE": str(scratch / "cache"), **ALONE})


def palettize(package: Path, options: Options) -> child.Finished:
    with options.scratch() as out:
        return child.run(child.module("coremltools_palettes", package, Path(out) / "model.mlpackage"), ALONE)


def add(result: Result, what: str, runs: Mapping[str, list[child.Finished]]) -> None:
    seconds = {how: median(run.processor_seconds for run in found) for how, found in runs.items()}
    peaks = {how: median(run.peak_bytes for run in found) for how, found in runs.items()}
    sizes = {how: found[0].result["bytes"] for how, found in runs.items()}
    more = seconds["palettes"] - seconds["float16"]
    result.rows.append(row(f"{what}, float16", None, seconds["float16"], peaks["float16"], sizes["float16"]))
    result.rows.append(row(f"{what}, palettes: more", what, more, peaks["palettes"], sizes["palettes"]))
    result.figures[what] = {
        "weights": WEIGHTS[what],
        "seconds": seconds,
        "more_seconds": more,
        "ns_a_weight": 1e9 * more / WEIGHTS[what],
        "peak_bytes": peaks["palettes"],
        "bytes": sizes,
    }


def row(what: str, weights: str | None, seconds: float, peak: float, size: float) -> tuple[str, ...]:
    each = "" if weights is None else f"{1e9 * seconds / WEIGHTS[weights]:.0f}"
    return what, each, f"{seconds:.1f}", gigabytes(peak), f"{size / 1e6:.1f}"
