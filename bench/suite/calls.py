"""What a call of each function of the saved packages is made of: operations, bytes of results, changes of unit."""

from pathlib import Path

from bench import child
from bench.options import Options
from bench.report import Result, Target

MEGABYTE = 1e6
GEMMA4_TINY = Path(__file__).parents[2] / "examples/gemma4-tiny"
PADDED_DECODE, PADDED_BEFORE, OPERATIONS_BEFORE = 155.0, 285.0, 2625  # SmolLM2's decode, keys as channels


def measure(options: Options) -> Result:
    from coreai_recipes.evaluate.cost import function_costs
    from coreai_recipes.lint.findings import lint
    from coreai_recipes.lint.reading import open_package

    result = Result(
        "calls: what a call of each function is made of",
        ("model", "function", ">operations", ">results MB", ">padded MB", ">changes of unit"),
    )
    with options.scratch() as scratch:
        for name, checkpoint in (("smollm2-135m", options.smollm2), ("gemma4-tiny", GEMMA4_TINY)):
            command = [child.RECIPE, "build", name, "--checkpoint", str(checkpoint), "--out", scratch]
            child.run([*command, "--no-verify", "--json"])
            package = Path(scratch) / name / "model.mlpackage"
            crossings = [crossing.function for crossing in lint(open_package(package)).crossings]
            for function, cost in function_costs(package).items():
                operations = sum(cost.operations.values())
                sizes = [size / MEGABYTE for size in (cost.result_bytes, cost.padded_bytes)]
                figures = (*(f"{size:.1f}" for size in sizes), str(crossings.count(function)))
                result.rows.append((name, function, f"{operations:,}", *figures))
                result.figures[f"{name} {function}"] = {**vars(cost), "crossings": crossings.count(function)}
                if (name, function) == ("smollm2-135m", "decode"):
                    result.targets.append(
                        Target("padded bytes of SmolLM2's decode", sizes[1], PADDED_DECODE, at_least=False, unit="MB")
                    )
    result.notes = [
        "results of all operations, a last axis padded to the engine's 64 bytes; a whole state is none",
        f"SmolLM2's decode with keys as channels: {OPERATIONS_BEFORE:,} operations, {PADDED_BEFORE:.0f} MB padded",
    ]
    return result
