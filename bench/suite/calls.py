"""What a call of each function of the saved packages is made of: operations, bytes of results, changes of unit.

Beside them what they were before they were written to the engine's rules, and those of ANEMLL where it is at hand.
"""

from collections import Counter
from pathlib import Path

from bench import anemll, child
from bench.options import Options
from bench.report import Result, Target

MEGABYTE = 1e6
SMOLLM2 = "smollm2-135m"
GEMMA4_TINY = Path(__file__).parents[2] / "examples/gemma4-tiny"
PADDED_DECODE = 155.0  # MB, SmolLM2's
# Operations and padded MB with keys as channels, rings that gathered, and two states a kind.
BEFORE = {
    (SMOLLM2, "decode"): (2625, 285.0),
    (SMOLLM2, "prefill"): (2631, 569.0),
    ("gemma4-tiny", "decode"): (1196, 10.0),
    ("gemma4-tiny", "prefill"): (1266, 11.0),
    ("gemma4-tiny", "score"): (1231, 10.3),
    ("gemma4-tiny", "draft"): (459, 3.7),
}


def measure(options: Options) -> Result:
    result = Result(
        "calls: what a call of each function is made of",
        ("model", "function", ">operations", ">before", ">results MB", ">padded MB", ">before", ">changes of unit"),
    )
    with options.scratch() as scratch:
        for name, checkpoint in ((SMOLLM2, options.smollm2), ("gemma4-tiny", GEMMA4_TINY)):
            command = [child.RECIPE, "build", name, "--checkpoint", str(checkpoint), "--out", scratch]
            child.run([*command, "--no-verify", "--json"])
            count(result, name, None, Path(scratch) / name / "model.mlpackage")
        if options.anemll is not None:
            _measure_anemll(result, options.anemll, Path(scratch))
    padded = result.figures[f"{SMOLLM2} decode"]["padded_bytes"] / MEGABYTE
    result.targets.append(Target("padded bytes of SmolLM2's decode", padded, PADDED_DECODE, at_least=False, unit="MB"))
    result.notes += ["results of all operations, a last axis padded to the engine's 64 bytes; a whole state is none"]
    return result


def count(result: Result, model: str, named: str | None, package: Path) -> None:
    """A row for each function of a package, or for the one of a package that is `named` after its part."""
    from coreai_recipes.evaluate import EvaluationError
    from coreai_recipes.evaluate.cost import function_costs
    from coreai_recipes.lint.findings import lint
    from coreai_recipes.lint.reading import open_package

    opened = open_package(package)
    crossings = Counter(crossing.function for crossing in lint(opened).crossings)
    try:
        costs = function_costs(package)
    except EvaluationError as error:  # shapes that only a call decides
        result.rows.append((model, named or "-", "-", "", "-", "-", "", "-"))
        result.notes.append(f"{model}, {named or package.name}: {error}")
        return
    for function, cost in costs.items():
        operations, name = sum(cost.operations.values()), named or function
        results, padded = (f"{size / MEGABYTE:.1f}" for size in (cost.result_bytes, cost.padded_bytes))
        before = BEFORE.get((model, name))
        were = ("", "") if before is None else (f"{before[0]:,}", f"{before[1]:.1f}")
        changes = str(crossings[function])
        result.rows.append((model, name, f"{operations:,}", were[0], results, padded, were[1], changes))
        result.figures[f"{model} {name}"] = {**vars(cost), "crossings": crossings[function]}


def _measure_anemll(result: Result, checkout: Path, scratch: Path) -> None:
    """Rows of what ANEMLL makes of a Llama of SmolLM2's shape: what a call is made of does not depend on weights."""
    from coreai_recipes import load_recipe

    export, checkpoint = load_recipe(SMOLLM2).export, scratch / "checkpoint"
    child.run(child.module("random_shards", checkpoint, SMOLLM2))
    model = f"{SMOLLM2} by ANEMLL"
    try:
        for part, package in anemll.convert(
            checkout, checkpoint, scratch / "anemll", export.context, export.functions.prefill
        ):
            count(result, model, part, package)
    except child.ChildError as error:
        result.notes.append(f"{model}: its converter stopped: {error}")
    result.notes.append(
        f"{model}: context {export.context}, prefill {export.functions.prefill}, no palettes; a token takes a call of "
        "embeddings, of decode and of head, each a package, and changes its unit between them"
    )
