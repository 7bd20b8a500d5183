"""An asset of the dynamic form for Apple's runner of coreai-models against the one that its own exporter writes.

    python -m bench.coreai_models_dynamic CHECKOUT

CHECKOUT is a clone of https://github.com/apple/coreai-models, of which nothing is held here. A small random Qwen3
becomes an asset here, and there one in float16 and one in float32. By Apple's runtime what `main` takes, gives and
holds must be the same, in the same order. `running.coreai_models_dynamic.Player` calls each asset over a text behind
which the caches are made longer, and each is compared with transformers, token after token. The table goes into
docs/hosts.md.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from bench import child
from bench.coreai_models import export, random_qwen3, write_table
from coreai_recipes.hosts.coreai_models import Settings
from coreai_recipes.hosts.coreai_models_dynamic import FIRST_ROWS, MAIN
from coreai_recipes.running.coreai import CoreAIProgram
from coreai_recipes.running.coreai_models_dynamic import Player
from coreai_recipes.verification.figures import psnr

BEGIN = "<!-- coreai-models-dynamic: written by `python -m bench.coreai_models_dynamic CHECKOUT` -->\n"
END = "<!-- end of coreai-models-dynamic -->\n"
CONTEXT = 4096  # their exporter traces caches of 2,048 rows, and leaves them open where the context has more
PROMPT, STEPS = FIRST_ROWS - 6, 12
TWIN, OURS = "our asset's float32 twin", "our asset"
WIDE, THEIRS = "their asset, exported in float32", "their asset"
AGAINST = {TWIN: WIDE, OURS: THEIRS}
SIDES = ("inputs", "outputs", "states")


def main(checkout: Path) -> None:
    with TemporaryDirectory() as name, torch.no_grad():
        folder, reference = Path(name), random_qwen3(CONTEXT)
        asset = export(reference, folder, {"host": "coreai-models-dynamic", "functions": {"prefill": 16}})
        engines = {TWIN: CoreAIProgram(asset, widened=True), OURS: CoreAIProgram(asset)}
        for words, dtype in ((WIDE, "float32"), (THEIRS, "float16")):
            package = folder / f"{dtype}.aimodel"
            child.run(child.module("coreai_models_export", checkout, folder / "checkpoint", package, dtype))
            engines[words] = CoreAIProgram(package)
        found = differing(engines[OURS].signatures[MAIN], engines[THEIRS].signatures[MAIN])
        print("\n".join(found) or f"{MAIN}: the signatures are the same", flush=True)
        assert not found
        figures = least_psnr(
            reference, {words: Player(engine, _settings(reference)) for words, engine in engines.items()}
        )
    lines = [
        f"Over a prompt of {PROMPT} tokens and {STEPS} more, so that all caches are made longer once:",
        "",
        "| least PSNR, dB | against transformers | against theirs of that precision |",
        "|---|---:|---:|",
    ]
    for words in engines:
        both = f"{figures[words, AGAINST[words]]:.1f}" if words in AGAINST else "-"
        lines.append(f"| {words} | {figures[words, '']:.1f} | {both} |")
    write_table(BEGIN, lines, END)


def differing(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """What of two functions' signatures is not the same by names, their order, dtypes and shapes, both in words."""
    return [
        f"{side}: {ours[side]}, and theirs {theirs[side]}"
        for side in SIDES
        if list(ours[side].items()) != list(theirs[side].items())
    ]


def least_psnr(model: Any, players: Mapping[str, Player]) -> dict[tuple[str, str], float]:
    """Of the last token of a prompt and of the tokens behind it, in dB: of each player against transformers (`""`), and
    of ours against theirs of that precision."""
    text = [(37 * index + 5) % model.config.vocab_size for index in range(PROMPT)]
    least = dict[tuple[str, str], float]()
    for _ in range(STEPS):
        reference = model(torch.tensor([text])).logits[0, -1]
        given = {words: player.next_logits(text) for words, player in players.items()}
        found = {(words, ""): psnr(reference, logits) for words, logits in given.items()}
        found |= {(words, other): psnr(given[other], given[words]) for words, other in AGAINST.items()}
        least = {pair: min(value, least.get(pair, value)) for pair, value in found.items()}
        text.append(int(reference.argmax()))
    assert all(player.capacity > FIRST_ROWS for player in players.values()), "no cache was made longer"
    return least


def _settings(model: Any) -> Settings:
    return Settings("model.aimodel", CONTEXT, model.config.vocab_size)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
