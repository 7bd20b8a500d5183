"""A module as coreai-torch's documentation has it exported, by torch.export: what a build's own recording is held
against, and what operations that modules stand for need."""

from typing import Any

import torch
from torch import Tensor, nn

from coreai_recipes.targets.coreai.factors import keep_factors


def exported(module: nn.Module, examples: tuple[Tensor, ...]) -> Any:
    """Decomposed, its factors kept exact."""
    from coreai_torch import get_decomp_table

    program = torch.export.export(module.eval(), args=examples).run_decompositions(get_decomp_table())
    keep_factors(program.graph)
    return program
