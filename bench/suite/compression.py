"""Four bits and others on gemma4-tiny's layers: what is lost, beside coremltools' palettes of the same matrices."""

from typing import Any

from bench import child
from bench.options import Options
from bench.report import Result, Target

COLUMNS = ("how", ">bits", ">KL, nats", ">predicted", ">top-1 %", ">perplexity")
# targets: KL divergence on the held-out tokens
UNIFORM, MIXED, MIXED_3 = 0.0175, 0.0125, 0.046
FASTER = 12.0  # processor seconds of coremltools' palettes, of ours


def measure(options: Options) -> Result:
    found = child.run(child.module("compression", options.repeats)).result
    result = Result(
        f"compression: gemma4-tiny's {found['matrices']} matrices of layers, {found['weights']:,} weights", COLUMNS
    )
    result.rows.append(row("as they are", found["unchanged"]))
    for bits, figures in found["coremltools"].items():
        result.rows.append(row(f"coremltools' palettes of {bits} bits, {16} channels", figures))
    for how, of in found["ours"].items():
        result.rows += [row(f"{how}, {form}", figures) for form, figures in of["uniform"].items()]
        result.rows += [row(f"{how}, search at {bits}", figures) for bits, figures in of["search"].items()]
    fitted, seconds = found["ours"]["fitted"], found["seconds"]
    result.targets = [
        Target("KL, fitted, 4 bits for all", fitted["uniform"]["4 bits"]["kl"], UNIFORM, False, "nats"),
        Target("KL, fitted, search at 4.06 bits", fitted["search"]["4.06"]["kl"], MIXED, False, "nats"),
        Target("KL, fitted, search at 3.06 bits", fitted["search"]["3.06"]["kl"], MIXED_3, False, "nats"),
    ]
    weights = found["weights"]
    beside = "coremltools was not measured: it clusters with scikit-learn, which is not installed"
    if "coremltools" in seconds:
        times = seconds["coremltools"] / seconds["ours"]
        result.targets.append(Target("seconds of 4-bit palettes, coremltools' of ours", times, FASTER, True))
        beside = f"coremltools {1e9 * seconds['coremltools'] / weights:.0f}"
    result.notes = [
        f"palettes of 4 bits: {1e9 * seconds['ours'] / weights:.0f} ns of processor a weight, median of "
        f"{options.repeats}; {beside}",
        f"gradients, fits at five widths and predictions: {fitted['seconds']:.0f} processor s, data-free "
        f"{found['ours']['data-free']['seconds']:.0f}",
    ]
    result.figures = found
    return result


def row(how: str, found: dict[str, Any]) -> tuple[str, ...]:
    predicted = f"{found['predicted']:.4g}" if "predicted" in found else ""
    kl = f"{found['kl']:.4g}" if found["kl"] > 1e-9 else "0"
    return (how, f"{found['bits']:.2f}", kl, predicted, f"{100 * found['top_1']:.1f}", f"{found['perplexity']:.2f}")
