"""Stage `rotary`: each kind's rotation against transformers' own, bit for bit, in float32 and bfloat16."""

import torch
from torch import Tensor

from coreai_recipes.decoder.model import Decoder, build_decoder
from coreai_recipes.recipe.schema import NoRotary
from coreai_recipes.verification.figures import compare
from coreai_recipes.verification.reference import Reference
from coreai_recipes.verification.reference_rotary import UnknownStructure, rotary_function
from coreai_recipes.verification.report import Figures, StageResult, figures_json, skip
from coreai_recipes.verification.subject import Subject

NAME = "rotary"
DTYPES = (torch.float32, torch.bfloat16)
HEADS = 2


def run(subject: Subject) -> StageResult:
    """Compares q-like random tensors, turned at positions from 0 to the recipe's context - 1."""
    reference = Reference(subject.recipe, subject.weights)
    decoder = build_decoder(subject.recipe)
    positions = sample_positions(subject.recipe.export.context)
    kinds = subject.recipe.model.layer_kinds
    figures: list[Figures] = []
    notes: dict[str, str] = {}
    for name in dict.fromkeys(kinds):
        if isinstance(subject.recipe.model.kinds[name].rotary, NoRotary):
            notes[name] = "does not rotate; stage torch compares its q and k"
            continue
        try:
            found = [_compare(reference, decoder, name, kinds.index(name), positions, dtype) for dtype in DTYPES]
        except UnknownStructure as reason:
            notes[name] = f"not compared: {reason}"
            continue
        figures += found
        notes[name] = "bit-exact" if all(f.psnr_db == float("inf") for f in found) else "differs"
    if not figures:
        return skip(NAME, "; ".join(f"{name} {note}" for name, note in notes.items()))
    first = next((f for f in figures if f.psnr_db != float("inf")), None)
    incomplete = any(note.startswith("not compared") for note in notes.values())
    detail = {
        "floor": "bit-exact",
        "positions": [int(positions[0]), int(positions[-1])],
        "sampled": len(positions),
        "dtypes": [str(dtype).removeprefix("torch.") for dtype in DTYPES],
        "kinds": notes,
        **({"first_below": figures_json(first)} if first else {}),
    }
    psnr_db, snr_min_db = min(f.psnr_db for f in figures), min(f.snr_min_db for f in figures)
    return StageResult(NAME, first is None and not incomplete, psnr_db, snr_min_db, None, detail)


def sample_positions(context: int) -> Tensor:
    """Positions 0 .. 63, some 200 up to the last, spread evenly and by powers of two, and the last 16; each once."""
    last = context - 1
    powers = [2**n + d for n in range(6, last.bit_length()) for d in (-1, 0, 1)]
    even = [last * i // 128 for i in range(129)]
    wanted = {*range(64), *powers, *even, *range(context - 16, context)}
    return torch.tensor(sorted(p for p in wanted if 0 <= p <= last))


def _compare(
    reference: Reference, decoder: Decoder, name: str, layer: int, positions: Tensor, dtype: torch.dtype
) -> Figures:
    given = reference.position_embeddings(positions, dtype)[layer]
    if given is None:
        raise UnknownStructure("transformers' layers of this family are not given position_embeddings")
    rotary = decoder.front.rotaries[name]
    head_dim: int = rotary.head_dim  # type: ignore[assignment]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, HEADS, len(positions), head_dim, generator=generator).to(dtype)  # (B, H, S, D)
    theirs = rotary_function(reference.layers[layer])(x, *given)
    # as the layers use it: (H, D, 1, S), angles (1, R/2, 1, S)
    cos, sin = (angle.transpose(1, 2).unsqueeze(2) for angle in rotary.angles(positions[None]))  # type: ignore[operator]
    ours = rotary.rotate_along(x[0].transpose(1, 2).unsqueeze(2), cos, sin, 1)  # type: ignore[operator]
    ours = ours.squeeze(2).transpose(1, 2)[None]
    label = f"{name}.rotary in {str(dtype).removeprefix('torch.')}"
    return compare(label, *(t[0].transpose(0, 1).flatten(1) for t in (theirs, ours)))
