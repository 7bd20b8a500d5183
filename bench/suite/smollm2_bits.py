"""What widths cost on SmolLM2, beside coremltools' palettes and integers: on a licence and on Genesis."""

from pathlib import Path
from typing import Any

from bench import child
from bench.options import Options
from bench.report import Result, Target
from bench.texts import NAMES, SAID, write_texts

PARTS = ("plain", "coremltools", "ingredients", "tuned", "tokens", "search", "regrouped", "rotated")
COLUMNS = ("how", ">bits", *(f">KL, {name}" for name in NAMES), ">KL, mean", ">predicted", ">top-1 %", ">perplexity")
# KL divergence, nats
UNIFORM, TUNED, MIXED, WHOLE, INT4 = 0.30, 0.26, 0.20, 0.22, 0.26
WHOLE_BITS = 4.85
ROTATED = 0.6  # of the loss of int4 without a text, where no grid flatters it
ALONE = {"OMP_NUM_THREADS": "1"}


def measure(options: Options) -> Result:
    found: dict[str, Any] = {"seconds": {}, "peak_bytes": {}, "texts": dict(zip(NAMES, SAID, strict=True))}
    with options.scratch() as scratch:
        texts = write_texts(Path(scratch), options.licence, options.genesis)
        for part in PARTS:
            done = child.run(child.module("smollm2_bits", part, options.smollm2, *texts), ALONE)
            found[part] = done.result[part]
            found["seconds"] |= done.result["seconds"]
            found["peak_bytes"][part] = done.peak_bytes
    return describe(found)


def describe(found: dict[str, Any]) -> Result:
    result = Result("smollm2_bits: SmolLM2's matrices of layers, the first 512 tokens of each text", COLUMNS)
    result.rows = [row(words, figures) for words, figures in rows(found)]
    fitted, search = found["ingredients"], found["search"]
    result.targets = [
        Target("KL, palettes of 4 bits for all", fitted["and palettes fitted again"]["kl"], UNIFORM, False, "nats"),
        Target("KL, the same tuned for 60 steps", found["tuned"]["60"]["kl"], TUNED, False, "nats"),
        Target("KL, int4 for blocks of 32", fitted["int4 for blocks of 32"]["kl"], INT4, False, "nats"),
        Target("KL, search at 4.5 bits", search["search"]["4.5"]["kl"], MIXED, False, "nats"),
        Target(
            f"KL with the table, at most {WHOLE_BITS} bits in all",
            min(each["kl"] for each in search["whole"].values() if each["bits"] <= WHOLE_BITS),
            WHOLE,
            False,
            "nats",
        ),
    ]
    if "rotated" in found:
        nearest, fits = (found["rotated"][f"int4 for blocks of 32, {how}"]["kl"] for how in ("no text", "fitted"))
        result.targets.append(
            Target("KL, int4 on a rotated model, of that without a text", fits / nearest, ROTATED, False)
        )
    curve = ", ".join(f"{count}: {each['kl']:.3g} ({each['own']:.3g})" for count, each in found["tokens"].items())
    seconds = ", ".join(f"{part} {taken:.0f}" for part, taken in found["seconds"].items())
    result.notes = [
        f"palettes of 4 bits by tokens fitted to, KL on the texts and on the last window of their own: {curve}",
        f"processor s, one thread: {seconds}",
    ]
    result.figures = found
    return result


def rows(found: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    listed = [(f"data-free, {words}", each) for words, each in found["plain"].items() if words != "unchanged"]
    listed += [(f"coremltools, {words}", each) for words, each in found["coremltools"].items()]
    listed += [(f"4 bits: {words}", each) for words, each in found["ingredients"].items()]
    listed += [(f"4 bits: and tuned, {steps} steps", each) for steps, each in found["tuned"].items()]
    listed += [(f"fitted, {words}", each) for words, each in found["search"]["uniform"].items()]
    listed += [(f"search at {bits}", each) for bits, each in found["search"]["search"].items()]
    listed += [(f"with the table: {words}", each) for words, each in found["search"]["whole"].items()]
    if "regrouped" in found:
        listed.append(("4 bits: and channels in the order of their size", found["regrouped"]))
    turned = found.get("rotated", {})
    listed += [(f"rotated: {words}", each) for words, each in turned.items() if isinstance(each, dict)]
    return [("as they are", found["plain"]["unchanged"]), *listed]


def row(how: str, found: dict[str, Any]) -> tuple[str, ...]:
    apart = [f"{found['texts'][name]['kl']:.3g}" for name in NAMES]
    predicted = f"{found['predicted']:.3g}" if "predicted" in found else ""
    rest = f"{100 * found['top_1']:.1f}", f"{found['perplexity']:.2f}"
    return how, f"{found['bits']:.2f}", *apart, f"{found['kl']:.3g}", predicted, *rest
