"""The table of docs/lint.md, made of the rules: `python -m tests.lint.rule_table` writes it there."""

from pathlib import Path

from coreai_recipes.lint.devices import devices
from coreai_recipes.lint.rule import rules

PAGE = Path(__file__).parents[2] / "docs/lint.md"
BEGIN, END = "<!-- rules: python -m tests.lint.rule_table -->", "<!-- end of rules -->"


def table() -> str:
    lines = ["| rule | what the engine wants | formats | chips | level | source | confidence |", f"|{7 * '---|'}"]
    for rule in rules().values():
        levels = ", ".join(dict.fromkeys(case.level for case in rule.cases))
        named = dict.fromkeys(
            chip for _, held in rule.settled() for chip in ((*held,) if held is not None else ("all",))
        )
        of = "both" if len(rule.formats) > 1 else f"`{rule.formats[0]}`"
        where = "all" if "all" in named else ", ".join(named)
        said = f"{rule.confidence}: {rule.disputed}" if rule.disputed else rule.confidence
        lines.append(f"| `{rule.id}` | {rule.about} | {of} | {where} | {levels} | {rule.source} | {said} |")
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
