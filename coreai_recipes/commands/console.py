"""What the terminal shows: tables, bars, errors. Results go to standard output, everything else to standard error."""

import json
import shutil
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import StringIO
from typing import TYPE_CHECKING, Any

from coreai_recipes.terminal import drawing, escape

if TYPE_CHECKING:
    from collections.abc import Callable

    from coreai_recipes.bundle import Bundle
    from coreai_recipes.lint.findings import Lint
    from coreai_recipes.lint.rule import Level, Rule


WIDEST = 1 << 16  # of a table where nothing is folded


def print_json(document: Any) -> None:
    """The one JSON document of `--json`, which is JSON on a terminal too: DEL is all that `dumps` leaves raw."""
    print(json.dumps(document, indent=2).replace("\x7f", "\\u007f"))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str | None = None) -> None:
    """A table on standard output; a column named with a leading `>` is set flush right."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    out = drawing(sys.stdout)

    def shown(words: str) -> Text:
        """Text, because a string would be read as rich's markup."""
        return Text(escape(words) if out.isatty() else words)

    table = Table(box=SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False)
    for column in columns:
        right = column.startswith(">")
        table.add_column(shown(column.removeprefix(">")), justify="right" if right else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(shown, row))
    if out.isatty():
        Console(file=out).print(table)
        return
    # a pipe has no width: nothing is folded or padded for it
    console = Console(file=StringIO(), width=WIDEST, color_system=None)
    console.print(table)
    lines = [line.rstrip().removeprefix(" ") for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]
    print("\n".join(line for line in lines if line.strip("─ ")))


def print_entries(columns: Sequence[str], rows: Sequence[tuple[Sequence[str], str]]) -> None:
    """Rows of short cells, a line each, with what there is to say of them below, indented and folded between words.

    A column named with a leading `>` is set flush right.
    """
    names = [column.removeprefix(">") for column in columns]
    widths = [max(map(len, cells)) for cells in zip(names, *(row for row, _ in rows), strict=True)]

    def line(cells: Sequence[str]) -> str:
        aligned = zip(columns, cells, widths, strict=True)
        return "  ".join(cell.rjust(w) if name.startswith(">") else cell.ljust(w) for name, cell, w in aligned).rstrip()

    print(line(names))
    for cells, detail in rows:
        print(line(cells))
        for words in folded(detail):
            print(words)


def folded(text: str, indent: str = "    ") -> list[str]:
    """The lines of a text, indented; on a terminal no longer than it is wide, and broken between words only."""
    if not text:
        return []
    if not sys.stdout.isatty():
        return [indent + line for line in text.split("\n")]
    width = max(shutil.get_terminal_size().columns, 2 * len(indent))
    wrap = {"initial_indent": indent, "subsequent_indent": indent, "break_on_hyphens": False, "break_long_words": False}
    return [line for part in text.split("\n") for line in textwrap.wrap(part, width, **wrap)]  # type: ignore[arg-type]


def word(value: Any) -> str:
    """A field's value in a cell."""
    return "-" if value is None else json.dumps(value) if isinstance(value, bool | list) else str(value)


@contextmanager
def progress_bar() -> "Iterator[Callable[[str, int, int], None] | None]":
    """A bar a step on a terminal's standard error, with what is left of it; nothing where nobody looks."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description:24}", markup=False),
        BarColumn(20),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("left"),
    )
    # rich would take over both streams, and obey what is printed meanwhile
    console = Console(file=drawing(sys.stderr))
    with Progress(*columns, console=console, redirect_stdout=False, redirect_stderr=False) as progress:
        tasks: dict[str, TaskID] = {}

        def show(step: str, done: int, total: int) -> None:
            if step not in tasks:
                tasks[step] = progress.add_task(escape(step), total=total)
            progress.update(tasks[step], completed=done, total=total)

        yield show


def print_report(report: Mapping[str, Any]) -> None:
    """The stages of a report with their figures."""
    rows = []
    for stage in report["stages"]:
        if stage["name"] == "compressed" and stage["passed"] is None:
            continue  # nothing compresses
        verdict = {True: "passed", False: "FAILED", None: "skipped"}[stage["passed"]]
        rows.append(
            (
                (stage["name"], verdict, *(_decibels(stage[key]) for key in ("psnr_db", "snr_min_db", "floor_db"))),
                _explain(stage),
            )
        )
    if rows:
        print_entries(("stage", "verdict", ">PSNR dB", ">SNR_min dB", ">floor dB"), rows)
    for stage in report["stages"]:
        if "by_tensor" in stage["detail"]:
            if any(row["form"] != "float16" for row in stage["detail"]["by_tensor"]):
                print_storage(stage["detail"]["by_tensor"])
            for row in stage["detail"].get("for_host", ()):
                bits = f"{row['bits_per_weight']:.2f} bits a weight"
                print(f"{row['name']}, for the host: {row['form']}, {bits}, {_decibels(row['psnr_db'])} dB")
    ran = [stage for stage in report["stages"] if stage["passed"] is not None]
    if not ran:
        reasons = {str(stage["detail"].get("skipped", "skipped")) for stage in report["stages"]}
        print(f"nothing was verified: {'; '.join(sorted(reasons)) or 'no stage was requested'}")
    if any("coreml" in stage["detail"] for stage in ran):
        print("not covered: placement")
    else:
        print("not covered: Core ML's own compiler and loader, placement, the hardware's accumulation")


def print_notes(notes: Sequence[str]) -> None:
    """What was decided against the recipe's word, a line each."""
    for note in notes:
        print(note)


def print_built(bundle: "Bundle") -> None:
    """What a build says at its end."""
    print_notes(bundle.notes)
    if bundle.left_out:
        print(f"left out: {', '.join(bundle.left_out)}")
    seconds = bundle.seconds or {}
    steps = ", ".join(f"{step} {taken:.1f} s" for step, taken in seconds.items() if taken >= 0.05)
    if bundle.weights is not None:
        print(f"weight.bin: {weights_in_words(bundle.weights)}")
    print(f"{bundle.path}  {bundle.bytes / 1e6:.1f} MB  ({steps})")


def weights_in_words(found: Mapping[str, Any]) -> str:
    """`134,515,008 weights, 8.03 bits each, 135,012,096 bytes: int8 per channel and float16`."""
    bits = f"{found['bits_per_weight']:.2f} bits each"
    return f"{found['weights']:,} weights, {bits}, {found['bytes']:,} bytes: {found['forms']}"


def print_storage(by_tensor: "Sequence[Mapping[str, Any]]") -> None:
    """How each kind of matrix is stored, and how near the checkpoint's the furthest of it is where that is known."""
    from coreai_recipes.storage.accounting import by_kind

    rows = [
        (
            row["name"],
            f"{row['count']:,}",
            f"{row['bits_per_weight']:.2f}",
            f"{row['share']:.1%}",
            _decibels(row["psnr_db"]),
            "; ".join((row["form"], *row["notes"])),
        )
        for row in by_kind(by_tensor)
    ]
    columns = ("weights", ">tensors", ">bits", ">of the file", ">lowest dB", "stored as")
    if all(row[4] == "-" for row in rows):
        print_table((*columns[:4], columns[5]), [(*row[:4], row[5]) for row in rows])
    else:
        print_table(columns, rows)


def print_lint(lint: "Lint", levels: "Sequence[Level] | None" = None) -> None:
    """Findings of all levels or of some, those of one rule in a line, and where a call changes units."""
    rows = [((group.level, group.id, group.where), group.what) for group in lint.groups(levels)]
    if rows:
        print_entries(("level", "rule", "where"), rows)
    for function, changes in lint.changes().items():
        print(f"{function}: {changes}")
    print(lint.summary())


def print_rule(rule: "Rule") -> None:
    """A rule, as `--explain` shows it."""
    held = ", ".join(rule.chips) + (f"; {rule.systems}" if rule.systems else "")
    rows = [
        ("wants", rule.about),
        ("level", " or ".join(dict.fromkeys(case.level for case in rule.cases))),
        ("holds for", held),
        ("source", rule.source),
        ("confidence", rule.confidence + (f": {rule.disputed}" if rule.disputed else "")),
        ("remedy", rule.remedy),
    ]
    print_table((rule.id, ""), rows)


def _decibels(value: float | str | None) -> str:
    return "-" if value is None else value if isinstance(value, str) else f"{value:.1f}"


def _explain(stage: Mapping[str, Any]) -> str:
    """The first things that a reader wants of a stage's detail."""
    detail = stage["detail"]
    if "skipped" in detail:
        return str(detail["skipped"])
    words = []
    if "first_below" in detail:
        words.append(f"first below its floor: {_figures(detail['first_below'])}")
    words += [f"set {each['text']}" if each["field"] else str(each["text"]) for each in detail.get("remedies", ())]
    if "kinds" in detail:
        words += [f"{kind}: {verdict}" for kind, verdict in detail["kinds"].items()]
        words.append(f"{detail['sampled']} positions")
    if "worst_psnr" in detail:
        words.append(f"{detail['tensors']} tensors at {detail['positions']} positions, lowest {detail['worst_psnr']}")
    if "probes" in detail:
        words.append(f"{sum(detail['probes'].values())} texts and conversations")
        if "different" in detail:
            found = detail["different"]
            words.append(f"{found['probe']}: {found['ours']} here, {found['transformers']} by transformers")
        words.append(detail.get("endless") or ("ids NOT equal" if "different" in detail else "ids equal"))
    if "greedy" in detail:
        greedy, ties = detail["greedy"], detail["greedy"].get("ties")
        verdict = greedy.get("skipped") or ("equal" if greedy["equal"] else f"NOT equal: {greedy['not_equal']}")
        words.append(f"greedy tokens {verdict}" + (f", {count(len(ties), 'tie')}" if ties else ""))
    if "tied_experts" in detail:
        words.append(f"{detail['tied_experts']['choices']} choices among tied experts")
    if detail.get("caches") == "random":
        words.append(f"on random caches; rounds {detail['rounds']}")
    if "accepted_per_round" in detail:
        unequal = [name for name, equal in detail["equal"].items() if not equal]
        verdict = f"rounds NOT equal: {detail['not_equal'][0]}" if unequal else "rounds equal, token for token"
        words.append(f"{verdict}; {detail['accepted_per_round']} drafted tokens accepted per round")
    if "rounded" in detail or "coreml" in detail:
        theirs, strict = detail["transformers_float16"], detail.get("strict")
        if "coreml" in detail:
            words.append(f"on Core ML ({detail['compute_units']}): {detail['coreml']['calls']}")
        words.append(f"top-1 {_percent(detail.get('coreml') or detail['rounded'])}")
        words.append(_their_halves(theirs, detail.get("transformers_bfloat16")))
        if strict:
            words.append(f"sums in float16 too {_decibels(strict['psnr_db'])} dB, top-1 {_percent(strict)}")
        words += [f"overflow in {name}" for name in detail["overflowed"][:1]]
    if "with_tables" in detail:
        words.append(f"top-1 {_percent(detail['engine'])} of package_float16's")
        words += [count(len(detail["ties"]), "tie")] if detail["ties"] else []
        tables = detail["with_tables"]
        words.append(f"with our tables {_decibels(tables['psnr_db'])} dB, top-1 {_percent(tables)}")
    if "kl" in detail:
        storage, perplexity = detail["storage"], detail["perplexity"]
        words.append(f"KL {detail['kl']['mean']:.4f} nats, top-1 {_percent(detail)}")
        words.append(f"perplexity {perplexity['compressed']:.2f}, {perplexity['transformers']:.2f} without")
        words.append(weights_in_words(storage))
        words += [over.partition("\n")[0] for over in detail.get("over_budget", ())]
    words += _reference_words(detail)
    if "weights" in detail:
        words.append(f"{detail['weights']}: {detail['layers']}")
    return "; ".join(words)


def _their_halves(float16: Mapping[str, Any], bfloat16: Mapping[str, Any] | None) -> str:
    """What transformers' own float16 is, or bfloat16 where float16 cannot hold the model."""
    found, name = (float16, "float16") if bfloat16 is None else (bfloat16, "float16 is not finite, bfloat16")
    return f"transformers' own {name} {_decibels(found['psnr_db'])} dB, top-1 {_percent(found)}"


def _reference_words(detail: Mapping[str, Any]) -> Iterator[str]:
    """What the reference was made of, where that is not config.json as it is."""
    made_of = detail.get("reference", {})
    config = made_of.get("config", "config.json")
    if "config" in detail:
        yield str(detail["config"])
    elif config != "config.json" and not config.startswith("the recipe"):
        yield f"reference config: {config}"
    if made_of.get("written_as"):
        yield f"the file says {made_of['written_as']}, as which llama.cpp writes this family"
    if made_of.get("not_read_by_transformers"):
        yield f"of which it does not read {', '.join(made_of['not_read_by_transformers'])}"
    for field, values in made_of.get("disagreeing", {}).items():
        yield f"{field}: {', '.join(f'{who} {value}' for who, value in values.items())}"


def _figures(found: Any) -> str:
    if not isinstance(found, Mapping):
        return str(found)
    return f"{found['tensor']} ({_decibels(found['psnr_db'])} / {_decibels(found['snr_min_db'])} dB)"


def count(number: int, noun: str) -> str:
    """`1 tie`, `2 ties`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _percent(found: Mapping[str, Any]) -> str:
    return f"{100 * found['top_1']:.1f} %"
