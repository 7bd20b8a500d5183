"""Four bits and others on gemma4-tiny's layers: what is lost, beside coremltools' of the same matrices."""

import math
from itertools import pairwise
from typing import Any

from bench import child
from bench.options import Options
from bench.report import Result, Target

COLUMNS = ("how", ">bits", ">KL, nats", ">predicted", ">top-1 %", ">perplexity")
# KL divergence on the held-out tokens
UNIFORM, MIXED, MIXED_3 = 0.0175, 0.0125, 0.046
LINE = ("3.06", "4.06", "4.5", "6.25")
ALONE = {"OMP_NUM_THREADS": "1"}


def measure(options: Options) -> Result:
    found = child.run(child.module("gemma4_tiny_bits"), ALONE).result
    title = f"gemma4_tiny_bits: gemma4-tiny's {found['matrices']} matrices of layers, {found['weights']:,} weights"
    result = Result(title, COLUMNS)
    result.rows.append(row("as they are", found["unchanged"]))
    result.rows += [row(f"coremltools, {words}", figures) for words, figures in found["coremltools"].items()]
    for how, of in found["ours"].items():
        result.rows += [row(f"{how}, {form}", figures) for form, figures in of["uniform"].items()]
        result.rows += [row(f"{how}, search at {bits}", figures) for bits, figures in of["search"].items()]
    fitted = found["ours"]["fitted"]
    result.targets = [
        Target("KL, fitted, 4 bits for all", fitted["uniform"]["4 bits"]["kl"], UNIFORM, False, "nats"),
        Target("KL, fitted, search at 4.06 bits", fitted["search"]["4.06"]["kl"], MIXED, False, "nats"),
        Target("KL, fitted, search at 3.06 bits", fitted["search"]["3.06"]["kl"], MIXED_3, False, "nats"),
        *(above_line(bits, fitted) for bits in LINE),
    ]
    result.notes = [
        f"gradients, fits at five widths and predictions: {fitted['seconds']:.0f} processor s, data-free "
        f"{found['ours']['data-free']['seconds']:.0f}"
    ]
    result.figures = found
    return result


def above_line(bits: str, fitted: dict[str, Any]) -> Target:
    """The search's loss, of what the line through forms that are the same for all has at its bits."""
    searched = fitted["search"][bits]
    points = sorted((each["bits"], each["kl"]) for each in fitted["uniform"].values())
    pairs = list(pairwise(points))
    (low, of_low), (high, of_high) = next(pair for pair in pairs if pair[0][0] <= searched["bits"] <= pair[1][0])
    share = (searched["bits"] - low) / (high - low)
    line = math.exp((1 - share) * math.log(of_low) + share * math.log(of_high))
    return Target(f"search at {bits} bits, of the line through uniform forms", searched["kl"] / line, 1.0, False)


def row(how: str, found: dict[str, Any]) -> tuple[str, ...]:
    predicted = f"{found['predicted']:.4g}" if "predicted" in found else ""
    kl = f"{found['kl']:.4g}" if found["kl"] > 1e-9 else "0"
    return (how, f"{found['bits']:.2f}", kl, predicted, f"{100 * found['top_1']:.1f}", f"{found['perplexity']:.2f}")
