"""The page: facts and charts put into `page.html`. What a bundle says is text there, whatever it holds."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from coreai_recipes.report.device import function_rows, lines
from coreai_recipes.report.page import charts
from coreai_recipes.report.page.drawing import draw
from coreai_recipes.report.page.environment import environment, style
from coreai_recipes.report.plan import fit_table, products_table
from coreai_recipes.report.rules import groups, not_run, summary
from coreai_recipes.report.verdict import NOT_COVERED
from coreai_recipes.report.words import decibels, milliseconds, word

Facts = Mapping[str, Any]


def page_of(bundles: Sequence[Facts]) -> str:
    """The HTML of a page of one or several bundles, side by side where there is room."""
    made = environment()
    made.filters |= {"db": decibels, "word": word}
    drawn = [{**facts, **_drawn(facts, index)} for index, facts in enumerate(bundles)]
    page: str = made.get_template("page.html").render(
        title=", ".join(each["name"] for each in drawn), bundles=drawn, style=style()
    )
    return page


def _drawn(facts: Facts, index: int) -> dict[str, Any]:
    """What a page shows of a bundle beside its facts: charts, tables, and what is measured, bounded and unknown."""
    from markupsafe import Markup

    numbers = iter(range(1000 * index, 1000 * (index + 1)))

    def svg(spec: charts.Spec | None) -> Any:
        return None if spec is None else Markup(draw(spec, next(numbers)))

    plan = facts["plan"]
    stages = [stage["name"] for stage in facts["report"]["stages"]]
    compared = {name: svg(charts.decibels_chart(facts, name)) for name in stages}
    products, products_rows = products_table(plan)
    return {
        "layers_chart": svg(charts.layers_chart(facts)),
        "turns_charts": {
            name: svg(charts.turns_chart(kind["turns"])) for name, kind in facts["kinds"].items() if kind["turns"]
        },
        "decibels_charts": {name: chart for name, chart in compared.items() if chart is not None},
        "ranges_chart": svg(charts.ranges_chart(facts)),
        "tensors_chart": svg(charts.tensors_chart(facts)),
        "loss_chart": svg(charts.loss_chart(facts)),
        "products": [name.removeprefix(">") for name in products],
        "products_rows": products_rows,
        "fit_rows": [] if plan["fit"] is None else fit_table(plan["fit"]),
        "lint_rows": list(groups(facts["lint"]["findings"])),
        "lint_summary": "; ".join((summary(facts["lint"]["findings"]), *not_run(facts["lint"]))),
        "device_rows": [(report, function_rows(report), lines(report)) for report in facts["device_reports"]],
        "known": {
            "measured": list(_measured(facts)),
            "bounded": list(_bounded(facts)),
            "unknown": list(_unknown(facts)),
        },
    }


def _measured(facts: Facts) -> Iterator[str]:
    """By the evaluator or Apple's runtime, on this machine; and on devices, where there is a report."""
    judge = "Apple's runtime" if facts["format"] == "coreai" else "the evaluator"
    ran = [stage["name"] for stage in facts["report"]["stages"] if stage["passed"] is not None]
    yield (
        f"against transformers, by {judge}: {', '.join(ran)}" if ran else "nothing against transformers: not verified"
    )
    if facts["audited"] is not None:
        yield f"ranges, on {facts['audited']['prompts']} prompts and {facts['audited']['positions']} positions"
    for report in facts["device_reports"]:
        yield f"on {report['device']}, {report['os_build']}, {report['date']}: its calls and where they run"


def _bounded(facts: Facts) -> Iterator[str]:
    fit = facts["plan"]["fit"]
    if fit is None:
        yield "nothing: the recipe names no device (export.device)"
    elif fit["most_tokens_per_second"] is None:
        yield f"nothing: no rate of {fit['name']} was measured"
    else:
        most = f"{fit['most_tokens_per_second']:.1f}, by the rate at which weights are read"
        yield f"tokens/s on {fit['name']}: at most {most}"
        yield from (f"first token of {b['prompt']:,}: {milliseconds(b['seconds'])} or more" for b in fit["first_token"])


def _unknown(facts: Facts) -> Iterator[str]:
    yield NOT_COVERED[facts["format"]]
    if not facts["device_reports"]:
        yield "every figure on a device: there is no device report"
    if facts["ranges"] is None and facts["format"] == "coreml":
        yield "how large values become: there is no audit"
    fit = facts["plan"]["fit"]
    yield from () if fit is None else (f"of {fit['name']}: {each}" for each in fit["unmeasured"])
