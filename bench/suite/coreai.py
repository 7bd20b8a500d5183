"""An .aimodel that is linked beside coreai-torch's conversion of the whole module: processor seconds, peak memory, and
whether both give the same to the bit by Apple's runtime.

Of Qwen3-0.6B's shape (28 layers, vocabulary 151936, random weights) both functions at context 2048, by decode steps
alone, for the runtime multiplies float16 matrices slowly; of small models all functions but a draft's.
"""

from dataclasses import dataclass
from pathlib import Path
from statistics import median

from bench import child
from bench.options import Options
from bench.report import Result, Target, gigabytes, per_second
from bench.suite.build import CONTEXT, LAYERS

TINY_LLAMA = str(Path(__file__).parents[2] / "tests/checkpoints/tiny-llama")
LINKED, FULL, WHOLE = "recipe build, empty cache", "recipe build, full cache", "coreai-torch, the whole module"
FEWER_SECONDS, LESS_MEMORY = 4.5, 7


@dataclass(frozen=True)
class Model:
    """A recipe, its checkpoint, what it overrides, and the calls by which both assets are compared; all if unsaid."""

    recipe: str
    checkpoint: str
    vocab_size: int
    overrides: tuple[str, ...] = ()
    calls: tuple[str, ...] = ()

    def build(self, scratch: Path, cache: str) -> child.Finished:
        command = [child.RECIPE, "build", self.recipe, "--checkpoint", self.checkpoint, "--out", str(scratch / "dist")]
        for override in ("export.format=coreai", *self.overrides):
            command += ["--set", override]
        return child.run([*command, "--no-verify", "--json"], {"RECIPE_CACHE": str(scratch / cache)})

    def linked(self, scratch: Path) -> Path:
        return scratch / "dist" / self.recipe / "model.aimodel"

    def convert(self, asset: Path) -> child.Finished:
        return child.run(child.module("naive_coreai", self.recipe, self.checkpoint, asset, *self.overrides))

    def differences(self, scratch: Path, asset: Path) -> list[str]:
        command = child.module("same_answers", self.linked(scratch), asset, self.vocab_size, *self.calls)
        found: list[str] = child.run(command).result
        return found


def measure(options: Options) -> Result:
    shape = Model(
        "qwen3-0.6b",
        str(options.checkpoint(LAYERS)),
        151936,
        (f"export.context={CONTEXT}",),
        ("decode", "decode"),
    )
    small = (
        Model("tiny-llama", TINY_LLAMA, 512),
        Model("gemma4-tiny", "embedded:gemma4-tiny", 2048),
    )
    result = Result(
        "coreai: an .aimodel, linked and streamed, beside coreai-torch's conversion of the whole module",
        ("model", "what", ">processor s", ">s", ">peak GB", "to the bit"),
    )
    runs: dict[str, dict[str, list[child.Finished]]] = {}
    for model in (shape, *small):
        runs[model.recipe] = _measure(model, options, result)
    found = runs[shape.recipe]
    seconds = {name: median(run.processor_seconds for run in each) for name, each in found.items()}
    peaks = {name: median(run.peak_bytes for run in each) for name, each in found.items()}
    what = f"Qwen3-0.6B's shape, {LINKED}"
    result.targets = [
        Target(f"{what}, fewer processor seconds", seconds[WHOLE] / seconds[LINKED], FEWER_SECONDS, at_least=True),
        Target(f"{what}, less peak memory", peaks[WHOLE] / peaks[LINKED], LESS_MEMORY, at_least=True),
    ]
    result.notes = [
        f"Qwen3-0.6B's shape: {LAYERS} layers, vocabulary 151936, context {CONTEXT}, prefill of 64 and decode",
        "to the bit: logits, hidden states and states after calls by Apple's runtime, linked against whole",
    ]
    return result


def _measure(model: Model, options: Options, result: Result) -> dict[str, list[child.Finished]]:
    runs: dict[str, list[child.Finished]] = {LINKED: [], FULL: [], WHOLE: []}
    with options.scratch() as folder:
        scratch = Path(folder)
        asset = scratch / "whole.aimodel"
        written = set[bytes]()  # the digests of what was built
        for turn in range(options.repeats):
            for name in (LINKED, FULL):
                runs[name].append(model.build(scratch, f"cache-{turn}"))
                written.add((model.linked(scratch) / "main.hash").read_bytes())
        runs[WHOLE].append(model.convert(asset))
        found = model.differences(scratch, asset)
        if len(written) > 1:
            found.append("the bytes of two builds")
        for turn in range(1, options.baseline_repeats):
            runs[WHOLE].append(model.convert(scratch / f"whole-{turn}.aimodel"))
    for name, each in runs.items():
        processor, seconds = (median(getattr(r, of) for r in each) for of in ("processor_seconds", "seconds"))
        peak = median(run.peak_bytes for run in each)
        said = "" if name == WHOLE else "the same" if not found else f"differs: {', '.join(found[:3])}"
        result.rows.append((model.recipe, name, per_second(processor), per_second(seconds), gigabytes(peak), said))
    result.figures[model.recipe] = {
        name: [{"processor_seconds": r.processor_seconds, "seconds": r.seconds, "peak_bytes": r.peak_bytes} for r in e]
        for name, e in runs.items()
    } | {"differences": found}
    return runs
