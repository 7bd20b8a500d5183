"""The engine's rules on what coremltools makes of transformers' own modules: findings by rule, and rules with none."""

import tempfile
from pathlib import Path

from bench import child
from bench.options import Options
from bench.report import Result

MODELS = ("llama", "qwen3", "gemma2", "gpt2", "stablelm")


def measure(options: Options) -> Result:
    counts: dict[tuple[str, str], dict[str, int]] = {}
    crossings = {}
    with tempfile.TemporaryDirectory() as folder:
        for model in MODELS:
            package = Path(folder, f"{model}.mlpackage")
            child.run(child.module("plain_models", model, str(package)), result=False)
            # errors are what is looked for: status 1 is no failure
            found = child.run([child.RECIPE, "lint", str(package), "--json"], may_fail=True).result
            crossings[model] = len(found["crossings"])
            for finding in found["findings"]:
                of_rule = counts.setdefault((finding["id"], finding["level"]), {})
                of_rule[model] = of_rule.get(model, 0) + 1
    result = Result("plain: the rules on plain conversions", ("rule", "level", *(f">{model}" for model in MODELS)))
    for (rule, level), of_rule in counts.items():
        result.rows.append((rule, level, *(str(of_rule.get(model, "-")) for model in MODELS)))
    result.rows.append(("changes of unit", "", *(str(crossings[model]) for model in MODELS)))
    hit = {rule for rule, _ in counts}
    rules = child.run(
        [
            child.PYTHON,
            "-c",
            "import json; from coreai_recipes.lint.rule import rules; print(json.dumps([*rules()]))",
        ]
    ).result
    result.notes.append(f"without a finding: {', '.join(rule for rule in rules if rule not in hit)}")
    result.figures = {"findings": [[*key, of_rule] for key, of_rule in counts.items()]}
    return result
