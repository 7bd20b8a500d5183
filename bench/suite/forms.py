"""What the fold and the shortened prefill of shared caches save, on a random model of Gemma 4's mechanisms.

E2B's kinds at a third of its width and six layers, three of which share caches: each form is exported, counted from its
saved program, and evaluated in turn with the others.
"""

from pathlib import Path
from typing import Any

from bench import child
from bench.options import Options
from bench.report import Result, Target

STEPS = 10  # for each of `repeats`
FLOOR = 120.0  # at which forms of one model are the same function, as the fold must be
OURS, WHOLE, FOLDLESS = "as it ships", "shared layers for every token", "without the fold"
RECIPE = (
    "gemma4",
    "model.hidden_size=768",
    "model.vocab_size=8192",
    "model.embedding.per_layer={size: 64, vocab_size: 8192}",
    *(f"model.kinds.{kind}.mlp.intermediate_size=2048" for kind in ("sliding", "full")),
    *(f"model.kinds.{kind}_shared.mlp.intermediate_size=4096" for kind in ("sliding", "full")),
    "model.layers=[sliding, sliding, full, sliding_shared, sliding_shared, full_shared]",
    "export.context=1024",
)


def measure(options: Options) -> Result:
    with options.scratch() as scratch:
        command = child.module("gemma_forms", Path(scratch), STEPS * options.repeats, *RECIPE)
        found = child.run(command, {"OMP_NUM_THREADS": "1"}).result
    columns = ("form", "function", ">operations", ">MFLOP", ">results MB", ">states MB", ">ms", ">PSNR dB")
    result = Result("forms: a model of Gemma 4 E2B's mechanisms, six layers, prefill of 64, context 1024", columns)
    for form, functions in found.items():
        for function, figures in functions.items():
            result.rows.append((form, function, *cells(figures)))
    ours, whole, foldless = (found[form] for form in (OURS, WHOLE, FOLDLESS))
    agreement = min(figures["psnr_db"] for functions in found.values() for figures in functions.values())
    result.targets = [Target("logits of all forms alike, the least", agreement, FLOOR, at_least=True, unit="dB")]
    saved = 1 - ours["prefill"]["flops"] / whole["prefill"]["flops"]
    times = whole["prefill"]["milliseconds"] / ours["prefill"]["milliseconds"]
    result.notes = [
        f"the last token alone in shared layers: {100 * saved:.0f} % of prefill's flops saved, {times:.1f} x faster",
        *(describe_fold(function, ours[function], foldless[function]) for function in ours),
        "results: what operations write between them, views and states aside",
        f"median of {STEPS * options.repeats} calls in float32 on one thread, the forms in turn",
    ]
    result.figures = found
    return result


def cells(figures: dict[str, Any]) -> tuple[str, ...]:
    return (
        str(figures["operations"]),
        f"{figures['flops'] / 1e6:,.1f}",
        f"{figures['result_bytes'] / 1e6:.2f}",
        f"{figures['state_bytes'] / 1e6:.2f}",
        f"{figures['milliseconds']:.1f}",
        f"{figures['psnr_db']:.1f}" if figures["psnr_db"] < 999 else "equal",
    )


def describe_fold(function: str, ours: dict[str, Any], foldless: dict[str, Any]) -> str:
    """In words, whichever way it came out."""
    operations = ours["operations"] - foldless["operations"]
    flops, written = (foldless[key] - ours[key] for key in ("flops", "result_bytes"))
    share = 100 * written / foldless["result_bytes"]
    return (
        f"the fold, {function}: {operations:+d} operations, {-flops / 1e6:+.2f} MFLOP, "
        f"{-written / 1e6:+.2f} MB of results ({-share:+.1f} %)"
    )
