"""Tables of docs/compression.md: each a function from a benchmark's figures to lines of Markdown."""

from collections.abc import Callable, Sequence
from typing import Any

from bench.suite.e2b_bits import LAYERS
from bench.texts import NAMES

Row = dict[str, Any]


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """`>` sets a column flush right."""
    ruler = "|".join("---:" if column.startswith(">") else "---" for column in columns)
    head = " | ".join(column.removeprefix(">") for column in columns)
    return [f"| {head} |", f"|{ruler}|", *(f"| {' | '.join(row)} |" for row in rows)]


def smollm2(found: Row) -> list[str]:
    """Forms by bits, coremltools' beside ours."""
    search, fitted = found["search"], found["ingredients"]
    integers = "int4 for blocks of 32"
    rows = []
    for bits, words, ours in (
        ("8", "int8", search["uniform"]["int8"]),
        ("6", "6 bits", search["uniform"]["6 bits"]),
        ("4.5", integers, fitted[integers]),
        ("4.5", "search at 4.5", search["search"]["4.5"]),
        ("4", "4 bits", search["uniform"]["4 bits"]),
        ("3", "3 bits", search["uniform"]["3 bits"]),
    ):
        theirs, plain = found["coremltools"].get(words), found["plain"].get(words)
        losses = apart(theirs), apart(plain), apart(ours)
        rows.append((bits, said(words), *losses, perplexities(theirs), perplexities(ours)))
    columns = (
        ">bits",
        "form",
        ">KL, coremltools",
        ">KL, no text",
        ">KL, fitted",
        ">perplexity, coremltools",
        ">fitted",
    )
    unchanged = perplexities(found["plain"]["unchanged"])
    return [
        f"The matrices of the layers, the table in float16, KL and perplexity on {texts(found)} apart.",
        f"Perplexity is {unchanged} as the model is.",
        "",
        *table(columns, rows),
        "",
        "![KL divergence over bits, SmolLM2](images/compression-smollm2.png)",
    ]


def whole(found: Row) -> list[str]:
    """With the table."""
    rows = [
        ("coremltools' palettes of 4 bits", found["coremltools"]["4 bits, the table too"]),
        ("palettes of 4 bits, no text", found["plain"]["4 bits, the table too"]),
        *((f"fitted: {words}", row) for words, row in found["search"]["whole"].items()),
    ]
    columns = ("with the tied table", ">bits in all", ">KL", ">mean", ">top-1", ">perplexity")
    return table(
        columns,
        [
            (words, f"{row['bits']:.2f}", apart(row), number(row["kl"]), percent(row["top_1"]), perplexities(row))
            for words, row in rows
        ],
    )


def ingredients(found: Row) -> list[str]:
    theirs = found.get("coremltools", {}).get("4 bits")
    rows = [
        *([("coremltools' clusters", theirs)] if theirs else []),
        ("clusters at the optimum of their squared error, no text", found["plain"]["4 bits"]),
        *((words, row) for words, row in found["ingredients"].items() if not words.startswith("int4")),
        *([("and channels in the order of their size", found["regrouped"])] if "regrouped" in found else []),
        *((f"and tuned for {steps} steps, all in all", row) for steps, row in found.get("tuned", {}).items()),
        ("int4 for blocks of 32, no text", found["plain"]["int4 for blocks of 32"]),
        ("int4 for blocks of 32, all of the same", found["ingredients"]["int4 for blocks of 32"]),
    ]
    columns = ("palettes of 4 bits, step by step", ">KL", ">mean", ">top-1", ">processor s")
    return [
        f"What each step buys, fitted to 16,384 tokens, the table in float16; KL on {texts(found)}:",
        "",
        *table(
            columns,
            [
                (
                    words,
                    apart(row),
                    number(row["kl"]),
                    percent(row["top_1"]),
                    f"{row['seconds']:.0f}" if "seconds" in row else "",
                )
                for words, row in rows
            ],
        ),
    ]


def tokens(found: Row) -> list[str]:
    columns = (">tokens fitted to", ">KL", ">mean", ">on a window of its own")
    rows = found["tokens"].items()
    return [
        *table(columns, [(f"{int(n):,}", apart(r), number(r["kl"]), number(r["own"])) for n, r in rows]),
        "",
        "![KL divergence over tokens that were fitted to](images/compression-tokens.png)",
    ]


def rotated(found: Row) -> list[str]:
    """Forms of 4 bits where no grid flatters them."""
    turned = {words: row for words, row in found["rotated"].items() if isinstance(row, dict)}
    nearest, fits = (turned[f"int4 for blocks of 32, {how}"]["kl"] for how in ("no text", "fitted"))
    return [
        f"The model rotated (`bench/children/rotating.py`), KL from the rotated model on {texts(found)}:",
        "",
        *table(
            ("rotated", ">KL", ">mean", ">top-1"),
            [(said(words), apart(row), number(row["kl"]), percent(row["top_1"])) for words, row in turned.items()],
        ),
        "",
        f"Fitted int4 loses {percent(fits / nearest, 0)} of int4 without a text. Rotating alone changes "
        f"{number(found['rotated']['from the model as it is'])} nats.",
    ]


def gemma4_tiny(found: Row) -> list[str]:
    plain, fitted, theirs = found["ours"]["data-free"], found["ours"]["fitted"], found["coremltools"]
    rows = [
        (row["bits"], f"{said(words)} for all", theirs.get(words), plain["uniform"].get(words), row)
        for words, row in fitted["uniform"].items()
    ]
    rows += [(row["bits"], "**search**", None, plain["search"][bits], row) for bits, row in fitted["search"].items()]
    columns = (">bits", "form", ">KL, coremltools", ">KL, no text", ">KL, fitted", ">top-1, fitted", ">perplexity")
    unchanged = found["unchanged"]["perplexity"]
    return [
        *table(
            columns,
            [
                (
                    f"{bits:.2f}",
                    form,
                    *(number(each["kl"]) if each else "" for each in (theirs_, plain_, row)),
                    percent(row["top_1"]),
                    f"{row['perplexity']:.2f}",
                )
                for bits, form, theirs_, plain_, row in sorted(rows, key=lambda each: (each[0], each[1]))
            ],
        ),
        "",
        f"Perplexity is {unchanged:.2f} as the model is. coremltools' int4 for blocks of 32 loses "
        f"{number(theirs['int4 for blocks of 32']['kl'])}.",
        "",
        "![KL divergence over bits, gemma4-tiny](images/compression-gemma4-tiny.png)",
        "",
        *parts(plain, fitted),
    ]


def parts(plain: Row, fitted: Row) -> list[str]:
    """What the text and the search buy at 4.06 bits."""
    first = plain["uniform"]["4 bits"]["kl"]
    rows = (
        ("palettes at the optimum of their squared error, no text", first),
        ("the search, no text", plain["search"]["4.06"]["kl"]),
        ("fitted to a text", fitted["uniform"]["4 bits"]["kl"]),
        ("both", fitted["search"]["4.06"]["kl"]),
    )
    listed = [(words, number(value), percent(value / first, 0)) for words, value in rows]
    return table(("gemma4-tiny at 4.06 bits", ">KL", ">of the first"), listed)


def palettes(found: Row) -> list[str]:
    rows = [
        (f"{what}, {row['weights'] / 1e6:.0f} M weights", row["more_seconds"], row)
        for what, row in found.items()
        if what != "coremltools"
    ]
    rows.insert(1, ("SmolLM2, coremltools' `palettize_weights`", found["coremltools"]["seconds"], found["coremltools"]))
    columns = ("palettes of 4 bits, no text", ">ns a weight", ">processor s", ">peak, GB", ">bundle or package, MB")
    return [
        "Processor time beyond that of the float16 build, the table among the weights:",
        "",
        *table(
            columns,
            [
                (
                    words,
                    f"{row['ns_a_weight']:.0f}",
                    f"{seconds:.1f}",
                    f"{row['peak_bytes'] / 1e9:.2f}",
                    f"{size_of(row) / 1e6:.0f}",
                )
                for words, seconds, row in rows
            ],
        ),
    ]


def e2b(found: Row) -> list[str]:
    built, fit = found["build"], found.get("fit")
    size = f"whole, `--bits 4`, no text: {built['bytes'] / 1e9:.2f} GB with the host's rows"
    peak = f"{built['peak_bytes'] / 1e9:.2f}"
    rows = [(size, f"{built['seconds']:.0f}", f"{built['processor_seconds']:.0f}", peak)]
    columns = ("Gemma 4 E2B's shape", ">s", ">processor s", ">peak, GB")
    if fit is None:
        return table(columns, rows)
    layers = " and ".join(f"{each:.0f}" for each in fit["fit_seconds"])
    words = f"its two widest layers, fitted to {fit['tokens']:,} tokens"
    rows.append((words, "", layers, f"{fit['peak_bytes'] / 1e9:.2f}"))
    whole = LAYERS * max(fit["fit_seconds"]) / 60
    return [
        *table(columns, rows),
        "",
        f"Its {LAYERS} layers, were each as wide as the widest, would take {whole:.0f} processor minutes to fit.",
    ]


def texts(found: Row) -> str:
    return f"the first 512 tokens of\n{' and of '.join(found['texts'].values())}"


def percent(share: float, digits: int = 1) -> str:
    return f"{100 * share:.{digits}f} %"


def size_of(row: Row) -> float:
    size = row["bytes"]
    return float(size["palettes"] if isinstance(size, dict) else size)


def said(words: str) -> str:
    return f"palettes of {words}" if words[0].isdigit() else words


def apart(row: Row | None) -> str:
    """KL divergence on each of the texts."""
    return " / ".join(number(row["texts"][name]["kl"]) for name in NAMES) if row else ""


def perplexities(row: Row | None) -> str:
    return " / ".join(f"{row['texts'][name]['perplexity']:.2f}" for name in NAMES) if row else ""


def number(value: float) -> str:
    """Three digits."""
    return f"{value:.3g}" if value >= 0.001 else f"{value:.5f}"


# by its name on the page: the benchmark, the parts of its figures that are needed, and what writes it
TABLES: dict[str, tuple[str, Sequence[str], Callable[[Row], list[str]]]] = {
    "smollm2": ("smollm2_bits", ("search", "ingredients", "coremltools"), smollm2),
    "whole": ("smollm2_bits", ("search", "coremltools"), whole),
    "ingredients": ("smollm2_bits", ("ingredients", "plain"), ingredients),
    "tokens": ("smollm2_bits", ("tokens",), tokens),
    "rotated": ("smollm2_bits", ("rotated",), rotated),
    "gemma4-tiny": ("gemma4_tiny_bits", (), gemma4_tiny),
    "palettes": ("palettes", (), palettes),
    "e2b": ("e2b_bits", ("build",), e2b),
}
