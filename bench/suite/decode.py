"""A decode step of SmolLM2's saved package in the evaluator, beside transformers' own step with its cache."""

from pathlib import Path
from statistics import median

from bench import child
from bench.options import Options
from bench.report import Result, Target

CONTEXT, POSITION, THREADS, STEPS = 512, 256, 2, 30
# A thread that waits must not spin: beside other work two threads then cost each other twenty times the step.
ENVIRONMENT = {"OMP_WAIT_POLICY": "passive"}
OURS, THEIRS = "the package, evaluated", "transformers, DynamicCache"


def measure(options: Options) -> Result:
    runs: dict[str, list[child.Finished]] = {OURS: [], THEIRS: []}
    with options.scratch() as scratch:
        bundle = build(options.smollm2, Path(scratch))
        children = {OURS: ("evaluator_step", bundle), THEIRS: ("transformers_step", options.smollm2)}
        for _ in range(options.repeats):
            for name, (program, model) in children.items():
                command = child.module(program, model, POSITION, THREADS, STEPS)
                runs[name].append(child.run(command, ENVIRONMENT))
    milliseconds = {name: median(run.result["milliseconds"] for run in found) for name, found in runs.items()}
    result = Result(
        f"decode: a step of SmolLM2-135M at context {CONTEXT}, position {POSITION}, {THREADS} threads, float32",
        ("what", ">ms", ">ratio", ">peak GB"),
    )
    for name, taken in milliseconds.items():
        peak = median(run.peak_bytes for run in runs[name])
        result.rows.append((name, f"{taken:.1f}", f"{taken / milliseconds[THEIRS]:.2f}", f"{peak / 1e9:.2f}"))
    what = "a decode step, of transformers'"
    result.targets = [Target(what, milliseconds[OURS] / milliseconds[THEIRS], 3, at_least=False)]
    result.notes = [f"median of {options.repeats} processes each, in turn; each the median of {STEPS} steps"]
    result.notes.append("OMP_WAIT_POLICY=passive for both")
    result.figures = {name: [run.result["milliseconds"] for run in found] for name, found in runs.items()}
    return result


def build(checkpoint: Path, scratch: Path) -> Path:
    """SmolLM2's bundle at the context of this benchmark, unverified."""
    command = [child.RECIPE, "build", "smollm2-135m", "--checkpoint", str(checkpoint), "--out", str(scratch)]
    child.run([*command, "--set", f"export.context={CONTEXT}", "--no-verify", "--json"])
    return scratch / "smollm2-135m"
