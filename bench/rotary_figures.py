"""Which dimension turns with which, and which rotaries were compared with transformers: docs/rotary.md.

`python -m bench.rotary_figures` draws each kind from what our rotary does to unit vectors, and fills in the matrix by
comparing every combination that the tests compare (tests/primitives/rotary_scalings.py), bit for bit.
"""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from coreai_recipes.primitives.rotary import Rotary
from coreai_recipes.recipe import schema

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
D, THETA = 16, 100.0  # small enough to see every dimension
LONG = 128  # head_dim of the wavelengths
SPECS = {
    "full": schema.FullRotary(kind="full", theta=THETA),
    "partial": schema.PartialRotary(kind="partial", theta=THETA, factor=0.5),
    "proportional": schema.ProportionalRotary(kind="proportional", theta=THETA, factor=0.5),
    "none": schema.NoRotary(kind="none"),
}
WORDS = {
    "full": "every dimension turns",
    "partial": "the first R = int(factor * D) dimensions turn, paired among themselves; here factor 0.5",
    "proportional": "pairs span the whole head, and the first of them turn; here factor 0.5",
    "none": "nothing turns",
}
DTYPES = (torch.float32, torch.bfloat16)
HEAD_DIMS, THETAS = (64, 80, 128), (1e4, 1e6)


def traced_pairs(rotary: Rotary) -> dict[tuple[int, int], float]:
    """The dimensions that each unit vector is spread over by a turn of one position, and its angle."""
    size = rotary.head_dim
    turned = rotary(torch.eye(size).view(1, size, 1, size), torch.tensor([[1]])).view(size, size)
    found = {}
    for dimension, row in enumerate(turned):
        touched = torch.nonzero(row).flatten().tolist()
        if len(touched) == 2 and touched[0] == dimension:
            found[dimension, touched[1]] = float(torch.atan2(row[touched[1]], row[dimension]))
    return found


def draw_kind(kind: str, path: Path) -> None:
    """One picture for each pairing that the kind has."""
    spec = SPECS[kind]
    if kind in ("none", "proportional"):
        drawn = [(spec, {"none": "", "proportional": "pairs (i, i + D/2)"}[kind])]
    else:
        pairings = ("half", "interleaved")
        drawn = [
            (spec.model_copy(update={"pairing": pairing}), f"{pairing}: {_pairs_in_words(kind, pairing)}")
            for pairing in pairings
        ]
    _draw(drawn, f"{kind}: {WORDS[kind]}", path)


def draw_the_two(path: Path) -> None:
    """`proportional` and `partial` side by side: as many dimensions turn, and other pairs."""
    titles = {
        "proportional": "Gemma 4: pairs (i, i + D/2) span the head",
        "partial": "Phi, GPT-NeoX: pairs (i, i + R/2) in its first part",
    }
    _draw([(SPECS[kind], title) for kind, title in titles.items()], "", path)


def _draw(drawn: Sequence[tuple[Any, str]], heading: str, path: Path) -> None:
    """Arcs over the dimensions of a head, a picture for each rotary with its title; colours are frequencies."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.patches import Arc

    # as wide as the longest heading needs, whatever is drawn below
    figure, axes = pyplot.subplots(1, len(drawn), figsize=(max(5.2 * len(drawn), 6.8), 2.9), squeeze=False)
    colours = pyplot.get_cmap("viridis")
    for axis, (spec, title) in zip(axes[0], drawn, strict=True):
        pairs = traced_pairs(Rotary(spec, D))
        fastest = max(pairs.values(), default=1.0)
        turning = {dimension for pair in pairs for dimension in pair}
        for dimension in range(D):
            colour = "#333333" if dimension in turning else "#cccccc"
            axis.plot(dimension, 0, "o", color=colour, markersize=9)
            axis.text(dimension, -0.9, str(dimension), ha="center", va="center", fontsize=7, color=colour)
        for (first, second), angle in pairs.items():
            colour = colours(0.9 * (1 - angle / fastest))
            width = second - first
            axis.add_patch(
                Arc(((first + second) / 2, 0), width, max(width * 0.9, 1.6), theta2=180, color=colour, linewidth=2)
            )
        axis.set_title(title, fontsize=9 if heading else 11)
        axis.set_xlim(-1, D)
        axis.set_ylim(-1.5, 5.5)
        axis.axis("off")
    if heading:
        figure.suptitle(heading, fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=110, metadata={"Software": None})
    pyplot.close(figure)


def _pairs_in_words(kind: str, pairing: str) -> str:
    width = "R" if kind == "partial" else "D"
    return "pairs (2i, 2i + 1)" if pairing == "interleaved" else f"pairs (i, i + {width}/2)"


def draw_scalings(path: Path) -> None:
    """How many positions a full turn of each pair takes, with each scaling."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    scalings = _scalings()
    shown = {
        "none": None,
        **{name: scalings.SCALINGS[name] for name in ("linear", "llama3", "yarn", "longrope, short", "longrope, long")},
    }
    figure, axis = pyplot.subplots(figsize=(6.6, 3.6))
    for name, case in shown.items():
        words = None if case is None else case.words(LONG // 2)[1]
        spec = schema.FullRotary.model_validate({"kind": "full", "theta": 10000.0, "scaling": words})
        context = None if case is None else case.context
        inv_freq = torch.tensor(Rotary(spec, LONG, context=context).inv_freq)
        axis.plot(2 * torch.pi / inv_freq, label=name, linewidth=1.6)
    axis.set_yscale("log")
    axis.set_xlabel(f"pair of {LONG // 2}, head_dim {LONG}, theta 10000")
    axis.set_ylabel("positions for a full turn")
    axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110, metadata={"Software": None})
    pyplot.close(figure)


def _scalings() -> Any:
    """The tests' own list of combinations."""
    folder = str(ROOT / "tests" / "primitives")
    if folder not in sys.path:
        sys.path.insert(0, folder)
    import rotary_scalings

    return rotary_scalings


def compare(base: str, scaling: str) -> str:
    """What a combination's cell says: bit-exact, or by how much it is off."""
    cases = _scalings()
    worst = 0.0
    for head_dim in filter(cases.BASES[base].allows, HEAD_DIMS):
        for theta in THETAS:
            reference, rotary, positions = cases.pair(base, scaling, head_dim, theta)
            for dtype in DTYPES:
                x = torch.randn(1, 2, positions.shape[1], head_dim).to(dtype)
                worst = max(worst, float((rotary(x, positions) - reference(x, positions)).abs().max()))
    return "bit-exact" if worst == 0 else f"off by {worst:.2g}"


def write_page() -> Iterator[str]:
    cases = _scalings()
    yield "# Rotaries\n"
    yield "A rotary turns pairs of a head's dimensions by angles that grow with the position. Models differ in which"
    yield "dimensions form a pair, how many turn, and how fast. A recipe names the layout as its rotary's `kind`.\n"
    yield "`python -m bench.rotary_figures` writes this page: it draws the pictures by rotating unit vectors with the"
    yield "module that is exported, and fills in the matrix by comparing that module with transformers' own classes.\n"
    yield "## Which dimension turns with which\n"
    yield "A colour is a frequency, from the fastest (dark) to the slowest (yellow). Grey dimensions pass unchanged.\n"
    for kind in SPECS:
        yield f"![{kind}: {WORDS[kind]}](rotary-{kind}.png)\n"
    yield f"{AFTER_KINDS}\n"
    yield "## Scalings\n"
    yield "![positions for a full turn of each pair](rotary-scalings.png)\n"
    yield f"{AFTER_SCALINGS}\n"
    yield "## Compared with transformers\n"
    dims, thetas = ", ".join(map(str, HEAD_DIMS)), " and ".join(f"{theta:g}" for theta in THETAS)
    yield f"Compared are float32 and bfloat16 activations, head_dim {dims} and theta {thetas}, at positions from 0 to"
    yield "the end of the context (131071 if the scaling sets none). The tests compare more combinations.\n"
    bases = list(cases.BASES)
    yield f"| scaling | {' | '.join(bases)} |"
    yield "|---" * (len(bases) + 1) + "|"
    for scaling in cases.SCALINGS:
        cells = [UNREAD if (base, scaling) == NESTED_TRUNCATE else compare(base, scaling) for base in bases]
        yield f"| {scaling} | {' | '.join(cells)} |"
    yield f"\n{AFTER_MATRIX}"


NESTED_TRUNCATE = ("full, half, one of two layer types", "yarn, not truncated")
UNREAD = "(not read)"


AFTER_KINDS = """\
`partial` and `proportional` turn the same number of dimensions, but never the same pairs. With the wrong one, text
stays fluent; [What a wrong rotary costs](rotary-layouts.md) measures the damage."""
AFTER_SCALINGS = """\
`yarn` and `longrope` also multiply cos and sin by an attention factor.

`longrope` has two lists of factors. transformers chooses between them at each call, by its length. A package chooses
once, when it is built: the long factors if `export.context` exceeds the original context. The manifest says which,
under `rotary`.

`dynamic` changes every frequency with each token beyond the trained context, although the keys in the cache were
rotated with other ones. A recipe whose context is longer than that is refused."""
AFTER_MATRIX = f"""\
`proportional`, also with linear scaling, is compared with Gemma 4's class, and `ntk` with HunYuan's. {UNREAD}:
transformers does not find `truncate` among a layer type's own parameters, so a config that has it there is refused."""


def main() -> None:
    torch.manual_seed(0)
    DOCS.mkdir(exist_ok=True)
    for kind in SPECS:
        draw_kind(kind, DOCS / f"rotary-{kind}.png")
    draw_the_two(DOCS / "images/rotary-two.png")
    draw_scalings(DOCS / "rotary-scalings.png")
    (DOCS / "rotary.md").write_text("\n".join(write_page()) + "\n")


if __name__ == "__main__":
    main()
