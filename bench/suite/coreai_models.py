"""An .aimodel for coreai-models' runner on macOS beside the one that its own exporter writes of the same weights.

Of Qwen3-0.6B's shape (28 layers, vocabulary 151936, random weights), uncompressed. Theirs is measured without its
tokenizer's files and without imports of its compression; ours is the whole `recipe build --no-verify`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

from bench import child
from bench.children.make_checkpoint import CONFIG
from bench.options import Options
from bench.report import Result, gigabytes, per_second
from bench.suite.build import LAYERS

EMPTY, FULL = "recipe build, empty cache", "recipe build, full cache"
THEIRS = "coreai-models' exporter"
CONTEXT = CONFIG["max_position_embeddings"]


def measure(options: Options) -> Result:
    checkout = options.coreai_models
    if checkout is None:
        raise child.ChildError("it needs --coreai-models, a checkout of that project")
    checkpoint = options.checkpoint(LAYERS)
    runs: dict[str, list[child.Finished]] = {EMPTY: [], FULL: [], THEIRS: []}
    with options.scratch() as folder:
        scratch = Path(folder)
        for turn in range(max(options.repeats, options.baseline_repeats)):
            if turn < options.repeats:
                for name in (EMPTY, FULL):
                    runs[name].append(build(checkpoint, scratch, f"cache-{turn}"))
            if turn < options.baseline_repeats:
                asset = scratch / f"theirs-{turn}.aimodel"
                command = child.module("coreai_models_export", checkout, checkpoint, asset, "float16")
                runs[THEIRS].append(child.run(command))
    return describe(runs, LAYERS)


def build(checkpoint: Path, scratch: Path, cache: str) -> child.Finished:
    """One `recipe build`; its bundle replaces the last one."""
    command = [child.RECIPE, "build", "qwen3-0.6b", "--checkpoint", str(checkpoint), "--out", str(scratch / "dist")]
    for override in ("export.format=coreai", "export.host=coreai-models-dynamic", f"export.context={CONTEXT}"):
        command += ["--set", override]
    return child.run([*command, "--no-verify", "--json"], {"RECIPE_CACHE": str(scratch / cache)})


def describe(runs: Mapping[str, Sequence[child.Finished]], layers: int) -> Result:
    """The table, each ratio of ours to theirs by medians of the same run."""
    processor, seconds, peaks = (
        {name: median(getattr(run, of) for run in each) for name, each in runs.items()}
        for of in ("processor_seconds", "seconds", "peak_bytes")
    )
    result = Result(
        f"coreai_models: Qwen3-0.6B's shape, {layers} layers, context {CONTEXT}, the dynamic form, float16",
        ("what", ">runs", ">processor s", ">s", ">peak GB", ">fewer processor s", ">less memory"),
    )
    for name, each in runs.items():
        result.rows.append(
            (
                name,
                str(len(each)),
                per_second(processor[name]),
                per_second(seconds[name]),
                gigabytes(peaks[name]),
                f"{processor[THEIRS] / processor[name]:.1f}",
                f"{peaks[THEIRS] / peaks[name]:.1f}",
            )
        )
    result.figures = {
        name: [
            {"processor_seconds": r.processor_seconds, "seconds": r.seconds, "peak_bytes": r.peak_bytes} for r in each
        ]
        for name, each in runs.items()
    }
    return result
