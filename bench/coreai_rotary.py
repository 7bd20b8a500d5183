"""Core AI's composite RoPE operation against transformers, run by Apple's runtime: docs/core-ai-rotary.md.

`python -m bench.coreai_rotary` measures all of it and writes the table of that page. It needs the extra `coreai`.
"""

import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.torch_export import exported
from coreai_recipes.primitives.rotary import build_rotary, fold_order
from coreai_recipes.recipe import schema
from coreai_recipes.running.coreai import CoreAIProgram
from coreai_recipes.targets.coreai.convert import new_converter, quietly
from coreai_recipes.verification.figures import psnr

PAGE = Path(__file__).parents[1] / "docs/core-ai-rotary.md"
BEGIN, END = "<!-- table: written by `python -m bench.coreai_rotary` -->\n", "<!-- end of table -->\n"
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
HEADS, POSITIONS, SEED = 8, 64, 0
Theirs = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Case:
    """A head of `head_dim` by the operation, and by transformers, `theirs`.

    `of_the_fault` are the operation's own base and dims; else it is given frequencies for all pairs of the head, zero
    where nothing turns, or cos and sin of them (`by_angles`), as packages have it.
    """

    what: str
    how: str
    head_dim: int
    theirs: Theirs
    spec: Any = None
    of_the_fault: tuple[float, int] | None = None
    by_angles: bool = False

    @property
    def order(self) -> tuple[int, ...]:
        """That of the head's dimensions, for the operation."""
        found = None if self.spec is None else fold_order(self.spec, self.head_dim, "whole_head")
        return found or tuple(range(self.head_dim))


class Turn(nn.Module):
    """x (1, H, S, D) and positions (1, S), both as float32 hold them -> x turned in `dtype` by the operation."""

    def __init__(self, case: Case, dtype: torch.dtype) -> None:
        from coreai_torch.composite_ops import RoPE

        super().__init__()
        self.case, self.dtype = case, dtype
        base, dims = case.of_the_fault or (1e4, None)
        self.rope = RoPE(base=base, dims=dims)
        self.rotary = None if case.spec is None else build_rotary(case.spec, case.head_dim, "whole_head")

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        x = x.to(self.dtype)
        if self.rotary is None:
            return self.rope(x, position_ids=positions).float()
        if not self.case.by_angles:
            inv_freq = torch.tensor(self.rotary.inv_freq, dtype=torch.float32)
            return self.rope(x, position_ids=positions, freqs=inv_freq).float()
        cos, sin = (angle.unsqueeze(1).to(self.dtype) for angle in self.rotary.angles(positions))
        return self.rope(x, cos=cos, sin=sin).float()


def cases() -> Iterator[Case]:
    from transformers import Gemma4TextConfig, GPTNeoXConfig, LlamaConfig, Phi3Config
    from transformers.models.gemma4 import modeling_gemma4 as gemma4
    from transformers.models.gpt_neox import modeling_gpt_neox as neox
    from transformers.models.llama import modeling_llama as llama
    from transformers.models.phi3 import modeling_phi3 as phi3

    def pair(module: Any, rotary: Any, *kind: str) -> Theirs:
        def turn(x: Tensor, positions: Tensor) -> Tensor:
            cos, sin = rotary(x, positions, *kind)
            return module.apply_rotary_pos_emb(x, x, cos, sin)[0]  # type: ignore[no-any-return]

        return turn

    of_gemma = gemma4.Gemma4TextRotaryEmbedding(Gemma4TextConfig())

    def gemma(x: Tensor, positions: Tensor) -> Tensor:
        return gemma4.apply_rotary_pos_emb(x, *of_gemma(x, positions, "full_attention"))  # type: ignore[no-any-return]

    proportional = schema.ProportionalRotary(kind="proportional", factor=0.25, theta=1e6)
    name = "Gemma 4, global layers: head_dim 512, factor 0.25"
    yield Case(name, "`base=1e6 ** 0.25, dims=128`: the fault", 512, gemma, of_the_fault=(1e6**0.25, 128))
    yield Case(name, "64 frequencies and 192 zeros", 512, gemma, proportional)
    yield Case(name, "cos and sin of these", 512, gemma, proportional, by_angles=True)

    rope = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.25}
    config = GPTNeoXConfig(hidden_size=512, num_attention_heads=8, rope_parameters=rope)
    partial, theirs = (
        schema.PartialRotary(kind="partial", factor=0.25, theta=1e4),
        pair(neox, neox.GPTNeoXRotaryEmbedding(config)),
    )
    name = "GPT-NeoX: head_dim 64, 16 of them turn"
    yield Case(name, "in whole-head order, 8 frequencies and 24 zeros", 64, theirs, partial)

    rope = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 1024}
    config = LlamaConfig(head_dim=64, max_position_embeddings=4096, rope_parameters=rope)
    scaling = schema.YarnScaling(kind="yarn", factor=4.0, original_context=1024)
    full = schema.FullRotary(kind="full", theta=1e4, scaling=scaling)
    theirs = pair(llama, llama.LlamaRotaryEmbedding(config))
    yield Case("yarn: head_dim 64", "cos and sin, times the attention factor", 64, theirs, full, by_angles=True)

    short, long = [1.0 + 0.02 * pair for pair in range(48)], [2.0 + 0.5 * pair for pair in range(48)]
    rope = {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "partial_rotary_factor": 0.75,
        "short_factor": short,
        "long_factor": long,
        "original_max_position_embeddings": 4096,
    }
    config = Phi3Config(
        hidden_size=1024, num_attention_heads=8, max_position_embeddings=131072, rope_parameters=rope, pad_token_id=0
    )
    scaling = schema.LongRopeScaling(
        kind="longrope", factor=32.0, original_context=4096, short_factor=short, long_factor=long
    )
    spec = schema.PartialRotary(kind="partial", factor=0.75, theta=1e4, scaling=scaling)
    theirs = pair(phi3, phi3.Phi3RotaryEmbedding(config))
    name = "Phi-4-mini's form, partial and longrope: head_dim 128, 96 of them turn"
    yield Case(name, "in whole-head order, cos and sin", 128, theirs, spec, by_angles=True)


def measure() -> list[tuple[Case, list[tuple[float, float]]]]:
    """Of each case, for each dtype: PSNR and the largest difference."""
    from coreai_torch import ExternalizeSpec
    from coreai_torch.composite_ops import RoPE

    spec = ExternalizeSpec(RoPE, composite_op_name="rope", composite_attrs=["scale", "base", "dims", "interleaved"])
    all_cases = list(cases())
    positions = torch.arange(1, 1 + POSITIONS, dtype=torch.int32)[None]
    given = [_heads(case.head_dim) for case in all_cases]
    names = {(n, d): f"case_{n}_{str(dtype)[6:]}" for n in range(len(all_cases)) for d, dtype in enumerate(DTYPES)}
    with tempfile.TemporaryDirectory() as folder, quietly(), torch.no_grad():
        converter = new_converter()
        for (n, d), name in names.items():
            args = (given[n], positions)
            converter.add_pytorch_module(
                Turn(all_cases[n], DTYPES[d]).eval(),
                export_fn=lambda module, args=args: exported(module, args),
                externalize_modules=[spec],
                input_names=["x", "positions"],
                output_names=["y"],
                entrypoint_name=name,
            )
        program, asset = converter.to_coreai(), Path(folder) / "rotary.aimodel"
        if str(program).count("composite_declaration") < len(names):
            raise RuntimeError("not every case is the composite operation")
        program.save_asset(asset)
        runtime, state, found = CoreAIProgram(asset), None, []
        state = runtime.make_state()
        for n, (case, x) in enumerate(zip(all_cases, given, strict=True)):
            figures = []
            for d, dtype in enumerate(DTYPES):
                half = x.to(dtype)
                order = case.order
                inputs = {"x": half.float()[..., list(order)].contiguous(), "positions": positions}
                turned = runtime.function(names[n, d])(inputs, state)["y"]
                ours, theirs = turned[..., torch.tensor(order).argsort()], case.theirs(half, positions).float()
                figures.append((psnr(theirs, ours), (theirs - ours).abs().max().item()))
            found.append((case, figures))
    return found


def _heads(head_dim: int) -> Tensor:
    """Random heads (1, H, S, D), the same for every case of that width."""
    return torch.randn(1, HEADS, POSITIONS, head_dim, generator=torch.Generator().manual_seed(SEED))


def table(found: list[tuple[Case, list[tuple[float, float]]]]) -> str:
    lines = ["| rotary | the operation is given | float32 | float16 | bfloat16 |", "|---|---|---|---|---|"]
    for case, figures in found:
        said = ("bit-equal" if worst == 0 else f"{decibels:.1f} dB, max {worst:.3g}" for decibels, worst in figures)
        lines.append(f"| {case.what} | {case.how} | {' | '.join(said)} |")
    return BEGIN + "\n".join(lines) + "\n" + END


def main() -> int:
    text = PAGE.read_text()
    before, rest = text.split(BEGIN)
    PAGE.write_text(before + table(measure()) + rest.split(END)[1])
    return 0


if __name__ == "__main__":
    sys.exit(main())
