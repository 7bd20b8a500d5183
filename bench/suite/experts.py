"""The two forms of a mixture of experts: layers of Gemma 4 26B-A4B at full width, built, evaluated, compared.

One layer of each kind, 128 experts of which a token takes 8, over a small vocabulary. What a call reads and computes is
the manifest's own count of the saved program.
"""

from pathlib import Path
from typing import Any

from bench import child
from bench.options import Options
from bench.report import Result, Target, gigabytes

NAME, KINDS = "gemma4-26b-a4b", ("sliding", "full")
OVERRIDES = (f"model.layers=[{', '.join(KINDS)}]", "model.vocab_size=4096", "export.context=1024")
STAGES = ("torch", "package")
FLOORS = {"torch": 100.0, "package": 90.0}
GATHERED, ALL = "the token's experts gathered", "all experts computed"
VERIFY_PEAK = 8e9


def measure(options: Options) -> Result:
    with options.scratch() as scratch:
        folder = Path(scratch)
        checkpoint = folder / "checkpoint"
        child.run(child.module("random_shards", checkpoint, NAME, *OVERRIDES))
        built, decoded = {}, {}
        for form, word in {GATHERED: "gathered", ALL: "all"}.items():
            forms = [f"model.kinds.{kind}.experts.decode={word}" for kind in KINDS]
            built[form] = build(checkpoint, folder / word, (*OVERRIDES, *forms))
            step = child.module("evaluator_step", folder / word / NAME, 0, 1, options.repeats)
            decoded[form] = child.run(step, {"OMP_NUM_THREADS": "1"})
        command = [child.RECIPE, "verify", str(folder / "gathered" / NAME), "--checkpoint", str(checkpoint), "--json"]
        stages = [argument for stage in STAGES for argument in ("--stage", stage)]
        verified = child.run([*command, *stages], may_fail=True)
    return describe(built, decoded, verified)


def build(checkpoint: Path, out: Path, overrides: tuple[str, ...]) -> child.Finished:
    command = [child.RECIPE, "build", NAME, "--checkpoint", str(checkpoint), "--out", str(out), "--no-verify", "--json"]
    return child.run([*command, *(word for key in overrides for word in ("--set", key))])


def describe(built: dict[str, child.Finished], decoded: dict[str, child.Finished], verified: child.Finished) -> Result:
    columns = ("form", "function", ">GFLOP", ">weights read, GB", ">ms", ">build s", ">peak GB")
    result = Result("experts: Gemma 4 26B-A4B at full width, a sliding and a full layer, vocabulary 4096", columns)
    for form, done in built.items():
        for function, cost in costs(done).items():
            milliseconds = f"{decoded[form].result['milliseconds']:.0f}" if function == "decode" else ""
            row = (form, function, f"{cost['flops'] / 1e9:.2f}", gigabytes(cost["weight_bytes"]), milliseconds)
            result.rows.append((*row, f"{done.seconds:.1f}", gigabytes(done.peak_bytes)))
    gathered, every = (costs(built[form])["decode"] for form in (GATHERED, ALL))
    saved = {key: (every[key] - gathered[key]) / len(KINDS) for key in ("flops", "weight_bytes")}
    result.notes = [
        f"a token and layer, gathered: {saved['weight_bytes'] / 1e9:.2f} GB less are read, "
        f"{saved['flops'] / 1e9:.2f} GFLOP less computed",
        f"verify took {verified.seconds:.0f} s, {gigabytes(verified.peak_bytes)} GB at its peak",
        "decode steps are evaluated in float32 on one thread, a median",
    ]
    stages = {stage["name"]: stage for stage in verified.result["stages"]}
    result.targets = [
        Target(f"{name} of both layers, PSNR", float(stages[name]["psnr_db"]), floor, at_least=True, unit="dB")
        for name, floor in FLOORS.items()
    ]
    result.targets.append(Target("peak of its verify", verified.peak_bytes / 1e9, VERIFY_PEAK / 1e9, False, "GB"))
    result.figures = {form: {"costs": costs(done), "seconds": done.seconds} for form, done in built.items()}
    result.figures["stages"] = verified.result["stages"]
    return result


def costs(done: child.Finished) -> dict[str, dict[str, Any]]:
    """What the manifest says of each function."""
    (package,) = (entry for entry in done.result["manifest"]["packages"] if entry["role"] == "all")
    return {name: function["cost"] for name, function in package["functions"].items()}
