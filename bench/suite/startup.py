"""How soon the command line answers, beside an empty one of the same making."""

from statistics import median

from bench import child
from bench.options import Options
from bench.report import Result, Target

COMMANDS = {
    "recipe --help": ([child.RECIPE, "--help"], 2.0),
    "recipe validate smollm2-135m": ([child.RECIPE, "validate", "smollm2-135m"], 4.0),
    "recipe list": ([child.RECIPE, "list"], 4.0),
}
EMPTY = "an empty typer app, --help"
WARM_UP = 1
ROUNDS = 4  # for each of `repeats`: these take tenths of a second, and the noise is as long


def measure(options: Options) -> Result:
    commands = {EMPTY: child.module("empty_app", "--help"), **{name: found for name, (found, _) in COMMANDS.items()}}
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    peaks: dict[str, int] = {}
    for turn in range(WARM_UP + ROUNDS * options.repeats):
        for name, command in commands.items():
            done = child.run(command, result=False)
            peaks[name] = done.peak_bytes
            if turn >= WARM_UP:
                seconds[name].append(done.seconds)
    medians = {name: median(found) for name, found in seconds.items()}
    result = Result("startup: the command line", ("command", ">ms", ">of the empty app", ">peak MB"))
    for name, taken in medians.items():
        row = (name, f"{1000 * taken:.0f}", f"{taken / medians[EMPTY]:.2f}", f"{peaks[name] / 1e6:.0f}")
        result.rows.append(row)
    result.targets = [
        Target(name, medians[name] / medians[EMPTY], bound, at_least=False) for name, (_, bound) in COMMANDS.items()
    ]
    result.notes.append(f"median of {ROUNDS * options.repeats}, in turn")
    result.figures = {"seconds": seconds}
    return result
