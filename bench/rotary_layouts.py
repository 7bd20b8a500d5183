"""What a wrong rotary costs: four layouts on the global layers of a trained Gemma 4, and of its draft.

`python -m bench.rotary_layouts` runs the experiment on examples/gemma4-tiny and writes docs/rotary-layouts.md with its
plots. Everything is the project's own torch modules in float32, which `recipe verify gemma4-tiny` holds against
transformers; a layout exchanges the rotary of the layers whose kind is `proportional` and leaves the weights alone.
"""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn

from coreai_recipes.bundle import find_sources
from coreai_recipes.primitives.rotary import Rotary
from coreai_recipes.recipe import load_recipe
from coreai_recipes.recipe.schema import FullRotary, ProportionalRotary
from coreai_recipes.verification.stages.draft import OfTorch

ROOT = Path(__file__).parents[1]
WINDOW = 512  # tokens of a window of held-out text
NEW_TOKENS = 96
LONG_PROMPTS, LONG_TOKENS, BUCKET = 8, 416, 64
SAMPLE_TOKENS = 60

RIGHT, CONTIGUOUS, FULL, ROUNDED = "proportional", "contiguous", "full", "bfloat16 frequencies"
MEANING = {
    RIGHT: "pairs (i, i + D/2), the first A of them turn: Gemma 4's own",
    CONTIGUOUS: "the same A frequencies on pairs (i, i + A) of the first 2A dimensions: what other exporters ship",
    FULL: "every pair (i, i + D/2) turns, theta^(-2i/D)",
    ROUNDED: "proportional, its frequencies rounded to bfloat16, as `.to(bfloat16)` does to a buffer",
}
COLOURS = {RIGHT: "#1b7837", CONTIGUOUS: "#d6604d", FULL: "#762a83", ROUNDED: "#4393c3"}


def lay_out(rotary: Rotary, layout: str) -> Rotary:
    """A rotary of one of the layouts in place of a proportional one."""
    spec, head_dim = rotary.spec, rotary.head_dim
    if layout == CONTIGUOUS:
        return Rotary(spec, head_dim, folded=True)  # the fold's rotation, without the permutation that makes it right
    if layout == FULL:
        return Rotary(FullRotary(kind="full", theta=spec.theta), head_dim)
    found = Rotary(spec, head_dim)
    if layout == ROUNDED:
        found.inv_freq = tuple(torch.tensor(found.inv_freq).bfloat16().float().tolist())
    return found


def set_layout(models: OfTorch, layout: str) -> None:
    """Give every proportional layer of target and draft the layout."""

    def is_proportional(rotary: nn.Module) -> bool:
        return isinstance(getattr(rotary, "spec", None), ProportionalRotary)

    originals: dict[tuple[int, str], Any] = models.__dict__.setdefault("originals", {})
    attentions: list[Any] = [layer.attention for layer in (*models.decoder.stack, *models.draft.stack)]
    holders = [(attention, "rotary") for attention in attentions]
    holders += [(held, name) for held in (models.decoder.front.rotaries, models.draft.rotaries) for name in held]
    for holder, name in holders:
        original = originals.setdefault((id(holder), name), getattr(holder, name))
        if is_proportional(original):
            setattr(holder, name, lay_out(original, layout))


@dataclass
class Measured:
    """The figures of one layout."""

    logits: list[Tensor] = field(default_factory=list)
    psnr_db: float = math.inf
    psnr_by_position: list[float] = field(default_factory=list)
    top_1: float = 1.0
    perplexity: float = 0.0
    perplexity_by_position: list[float] = field(default_factory=list)
    accepted: float = 0.0
    accepted_by_position: list[float] = field(default_factory=list)
    sample: str = ""

    def to_json(self) -> dict[str, Any]:
        figures = {name: value for name, value in vars(self).items() if name != "logits"}
        return {**figures, "psnr_db": "inf" if math.isinf(self.psnr_db) else self.psnr_db}


def measure(
    models: OfTorch, layout: str, held_out: Sequence[int], prompts: Sequence[Sequence[int]], right: Measured | None
) -> Measured:
    """One layout: logits and perplexity on held-out text, rounds from each prompt, and a sample."""
    set_layout(models, layout)
    found = Measured()
    losses = []
    for window in windows(held_out):
        logits = models.decoder(torch.tensor([window]))[0]
        found.logits.append(logits)
        losses.append(nn.functional.cross_entropy(logits[:-1], torch.tensor(window[1:]), reduction="none"))
    loss = torch.stack(losses)
    found.perplexity = loss.mean().exp().item()
    found.perplexity_by_position = [part.mean().exp().item() for part in loss.split(BUCKET, 1)]
    if right is not None:
        ours, theirs = torch.stack(found.logits), torch.stack(right.logits)
        found.psnr_db = psnr(theirs, ours)
        found.psnr_by_position = [
            psnr(ref, x) for ref, x in zip(theirs.split(BUCKET, 1), ours.split(BUCKET, 1), strict=True)
        ]
        found.top_1 = (ours.argmax(-1) == theirs.argmax(-1)).float().mean().item()
    rounds = [(len(prompt), models.rounds(prompt, NEW_TOKENS)) for prompt in prompts]
    calls = sum(len(of_prompt) - 1 for _, of_prompt in rounds)
    tokens = sum(len(r.tokens) for _, of_prompt in rounds for r in of_prompt[1:])
    found.accepted = tokens / calls - 1
    found.accepted_by_position = accepted_by_position(models, prompts[:LONG_PROMPTS])
    return found


def accepted_by_position(models: OfTorch, prompts: Sequence[Sequence[int]]) -> list[float]:
    """Accepted tokens a round, by where in the context the round began; whole rounds of four drafted tokens alone."""
    sums: dict[int, list[int]] = {}
    for prompt in prompts:
        position = len(prompt)
        for index, found in enumerate(models.rounds(prompt, LONG_TOKENS)):
            if index and len(found.drafted) == 4:
                sums.setdefault(position // BUCKET, []).append(found.accepted)
            position += len(found.tokens)
    return [sum(sums[b]) / len(sums[b]) for b in sorted(sums)]


def windows(held_out: Sequence[int]) -> Iterator[list[int]]:
    for start in range(0, len(held_out) - WINDOW + 1, WINDOW):
        yield list(held_out[start : start + WINDOW])


def psnr(ref: Tensor, x: Tensor) -> float:
    """20 log10(max |ref|) - 10 log10(mean((ref - x)^2)), verification's first figure."""
    error = (ref - x).double().pow(2).mean().item()
    return math.inf if error == 0 else 20 * math.log10(ref.abs().max().item()) - 10 * math.log10(error)


def draw(found: dict[str, Measured], folder: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    def plot(name: str, title: str, label: str, of: Callable[[Measured], list[float]]) -> None:
        figure, axes = plt.subplots(figsize=(7, 3.6), dpi=150)
        for layout, measured in found.items():
            values = of(measured)
            if values:
                centres = [BUCKET * (i + 0.5) for i in range(len(values))]
                axes.plot(centres, values, marker="o", markersize=4, color=COLOURS[layout], label=layout)
        axes.set_xlabel("position in the context")
        axes.set_ylabel(label)
        axes.set_title(title, fontsize=10)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
        figure.tight_layout()
        figure.savefig(folder / f"rotary-layouts-{name}.png")
        plt.close(figure)

    folder.mkdir(parents=True, exist_ok=True)
    plot("psnr", "Logits against the right layout", "PSNR, dB", lambda m: m.psnr_by_position)
    plot("perplexity", "Held-out text", "perplexity", lambda m: m.perplexity_by_position)
    plot("accepted", "Drafted tokens accepted, of 4 a round", "accepted a round", lambda m: m.accepted_by_position)


def page(found: dict[str, Measured], facts: dict[str, Any]) -> str:
    rows = "\n".join(
        f"| {layout} | {'identical' if math.isinf(m.psnr_db) else f'{m.psnr_db:.1f} dB'} | {100 * m.top_1:.1f} % "
        f"| {m.perplexity:.2f} | {m.accepted:.2f} |"
        for layout, m in found.items()
    )
    meaning = "\n".join(f"- **{layout}**: {text}." for layout, text in MEANING.items())
    samples = "\n\n".join(f"**{layout}**\n\n    {m.sample}" for layout, m in found.items())
    return f"""# What a wrong rotary costs

The subject is the model that ships with the project: a trained Gemma 4 of {facts["parameters"]} and its draft
([gemma4-tiny](../examples/gemma4-tiny/README.md)). Its global layers were trained with Gemma 4's own rotary. The
weights stay as they are; the rotary of the global layers, in target and draft alike, is laid out in four ways:

{meaning}

| layout | logits, PSNR | top-1 as the right one | perplexity | drafted tokens accepted, of 4 |
|---|---|---|---|---|
{rows}

PSNR, top-1 and perplexity are over {facts["held_out"]} tokens of held-out text in windows of {WINDOW}; accepted is
(tokens produced / target calls after the prompt) - 1, greedy, over {facts["prompts"]} held-out prompts of
{facts["prompt_tokens"]} tokens, {NEW_TOKENS} new tokens each. Every row is the model's own greedy text under its
layout: speculative decoding changes no token, only how many the target must compute by itself.

![logits](images/rotary-layouts-psnr.png)

![perplexity](images/rotary-layouts-perplexity.png)

![accepted](images/rotary-layouts-accepted.png)

The last plot continues {LONG_PROMPTS} of the prompts to {LONG_TOKENS} new tokens. Each round counts at the
position where it began, in steps of {BUCKET}.

{facts["reading"]}

## A sample of each

{facts["sample_prompt"]!r}, greedy, {SAMPLE_TOKENS} tokens:

{samples}

## Run it again

    pip install -e '.[bench]'
    python -m bench.rotary_layouts

These commands write this page, its plots and [the figures](rotary-layouts.json), in a few minutes on one core.
"""


def main(
    recipe: Annotated[
        str, typer.Argument(help="A recipe with a draft whose full layers are proportional.")
    ] = "gemma4-tiny",
    prompts: Annotated[Path, typer.Option(help="Prompts and held-out text as token ids.")] = ROOT
    / "examples/gemma4-tiny/prompts.json",
    out: Annotated[Path, typer.Option(help="The folder of the page.")] = ROOT / "docs",
    reading: Annotated[Path, typer.Option(help="What is said of the figures, Markdown.")] = ROOT
    / "bench/rotary_layouts_reading.md",
) -> None:
    """Measure the four layouts and write docs/rotary-layouts.md."""
    torch.set_num_threads(1)
    loaded = load_recipe(recipe)
    _, sources = find_sources(loaded, {})
    source = sources["model"]
    texts = json.loads(prompts.read_text())
    found: dict[str, Measured] = {}
    with torch.inference_mode():
        models = OfTorch.fill(loaded, source, sources["draft"])
        for layout in MEANING:
            found[layout] = measure(models, layout, texts["held_out"], texts["prompts"], found.get(RIGHT))
            found[layout].sample = sample(models, source.path, texts["prompts"][0])
            print(layout, json.dumps({k: v for k, v in found[layout].to_json().items() if k != "sample"}), flush=True)
    count = sum(p.numel() for p in models.decoder.parameters()) / 1e6
    facts = {
        "parameters": f"{count:.1f} M parameters",
        "held_out": len(texts["held_out"]) // WINDOW * WINDOW,
        "prompts": len(texts["prompts"]),
        "prompt_tokens": len(texts["prompts"][0]),
        "sample_prompt": decode(source.path, texts["prompts"][0])[-60:],
        "reading": reading.read_text().strip() if reading.exists() else "",
    }
    draw(found, out / "images")
    (out / "rotary-layouts.json").write_text(
        json.dumps({layout: measured.to_json() for layout, measured in found.items()}, indent=1) + "\n"
    )
    (out / "rotary-layouts.md").write_text(page(found, facts))


def sample(models: OfTorch, folder: Path, prompt: Sequence[int]) -> str:
    tokens = [token for found in models.rounds(prompt, SAMPLE_TOKENS) for token in found.tokens]
    return " ".join(decode(folder, tokens).split())


def decode(folder: Path, tokens: Sequence[int]) -> str:
    from tokenizers import Tokenizer

    return str(Tokenizer.from_file(str(folder / "tokenizer.json")).decode(list(tokens)))


if __name__ == "__main__":
    typer.run(main)
