"""The table of docs/lint.md, made of the rules: `python -m tests.lint.rule_table` writes it there."""

from pathlib import Path

from coreai_recipes.lint.devices import devices
from coreai_recipes.lint.rule import rules

FACTS = {"engine": "the engine", "float16": "float16", "core_ml": "Core ML", "host": "hosts"}
PAGE = Path(__file__).parents[2] / "docs/lint.md"
BEGIN, END = "<!-- rules: python -m tests.lint.rule_table -->", "<!-- end of rules -->"


def table() -> str:
    lines = [
        "| rule | what the engine wants | a fact of | sees an .aimodel | chips | level | source | confidence |",
        f"|{8 * '---|'}",
    ]
    for rule in rules().values():
        levels, of_assets = (
            ", ".join(dict.fromkeys(case.level for case, _ in rule.settled(which))) for which in ("coreml", "coreai")
        )
        sees = "coreai" in rule.formats
        if sees and of_assets != levels:
            levels = f"{levels}; of an .aimodel {of_assets}"
        named = dict.fromkeys(
            chip for _, held in rule.settled() for chip in ((*held,) if held is not None else ("all",))
        )
        where = "all" if "all" in named else ", ".join(named)
        said = f"{rule.confidence}: {rule.disputed}" if rule.disputed else rule.confidence
        cells = (rule.about, FACTS[rule.fact_of], "yes" if sees else "no", where, levels, rule.source, said)
        lines.append(f"| `{rule.id}` | {' | '.join(cells)} |")
    lines += [
        "",
        "| `--device` | is | chip | width | working set | weights GB/s | memory GB | source |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for device in devices().values():
        chip, rates = device.chip, device.streaming or ()
        streamed = " to ".join(f"{rate:g}" for rate in dict.fromkeys(rates)) or "-"
        sizes = [f"{size:,}" if size else "-" for size in (chip.width, chip.working_set)]
        memory = ", ".join(map(str, device.memory)) or "-"
        cells = (device.id, device.name, chip.id, *sizes, streamed, memory, device.source)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    text = PAGE.read_text()
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    PAGE.write_text(f"{before}{BEGIN}\n{table()}\n{END}{after}")


if __name__ == "__main__":
    main()
