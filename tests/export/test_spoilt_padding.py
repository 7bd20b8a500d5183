"""Padding that is no number: the token behind `count` has rows of infinities or NaN, and 0 x inf is NaN."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import FAMILIES
from programs import RECIPES, WEIGHTS, export, layer_kind, read_model, small_recipe, stored_constants
from torch import Tensor

from coreai_recipes.evaluate import Program
from coreai_recipes.export.cache import FragmentCache
from coreai_recipes.hosts.logits import choices
from coreai_recipes.recipe.schema import Recipe

pytestmark = pytest.mark.xdist_group(__name__)

LAST, CONTEXT, PREFILL, SCORE = 130, 64, 12, 4  # of the vocabulary, the token that is spoilt


def mixtures() -> Recipe:
    """Experts in place of MLPs, in rings and in full layers, with a sink in each head."""
    experts = {"num_experts": 5, "intermediate_size": 12, "router": {"score": "softmax", "top": 2}}
    of_mlp = {"kind": "moe", **experts}
    kinds = {
        "sliding": layer_kind("sliding", attention_sinks=True, mlp=of_mlp),
        "full": layer_kind(mlp={**of_mlp, "router": {"score": "sigmoid", "top": 2, "bias": "choice", "renorm": True}}),
    }
    return small_recipe(kinds, list(kinds), score=SCORE)


# Rings and full caches, without experts and with both sorts of them; per-layer rows and caches that layers share.
SUBJECTS: dict[str, Callable[[], Recipe]] = {
    "gemma2": lambda: (
        FAMILIES["gemma2"](context=CONTEXT, functions={"prefill": PREFILL, "score": SCORE}, sliding_window=7).recipe
    ),
    "gemma4": RECIPES["gemma4"],
    "mixtures": mixtures,
}


@pytest.mark.parametrize("worst", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("name", SUBJECTS)
def test_it_changes_no_bit_of_states_and_logits(
    name: str, worst: float, made: Any, cache: FragmentCache, tmp_path: Path
) -> None:
    """A prefill and a score with padding, across the wrap of rings, and decodes behind them."""
    recipe = SUBJECTS[name]()
    package = made(f"padded_{name}.mlpackage", lambda folder: export(recipe, folder, cache))
    program = Program(spoil(package, tmp_path / "model.mlpackage", worst))
    tokens = torch.randint(LAST, (CONTEXT,), generator=torch.Generator().manual_seed(1), dtype=torch.int32)
    answers = []
    for padding in (0, LAST):
        state, position = program.make_state(), 0
        found: list[Tensor] = []
        for function, count in (
            ("prefill", 9),
            ("score", 3),
            ("prefill", 7),
            ("decode", 1),
            ("score", 2),
            ("decode", 1),
        ):
            query = {"prefill": PREFILL, "score": SCORE, "decode": 1}[function]
            ids = torch.full((1, query), padding, dtype=torch.int32)
            ids[0, :count] = tokens[position : position + count]
            inputs: dict[str, Tensor] = {"input_ids": ids, "position": torch.tensor([position], dtype=torch.int32)}
            if function != "decode":
                inputs["count"] = torch.tensor([count], dtype=torch.int32)
            if recipe.model.embedding.per_layer is not None:
                inputs["per_layer"] = rows_of_table(program.function(function).inputs["per_layer"].shape, ids, worst)
            logits = choices(program.function(function)(inputs, state), recipe.model.vocab_size)
            found.append(logits[: count if function == "score" else 1, :LAST])
            position += count
        answers.append([*found, *state.values()])
    assert all(torch.isfinite(tensor).all() for tensor in answers[0])
    assert all(torch.equal(one, other) for one, other in zip(*answers, strict=True))


def spoil(package: Path, copy: Path, worst: float) -> Path:
    """A copy of the package whose table has a row of `worst` for the last token."""
    shutil.copytree(package, copy)
    with (copy / WEIGHTS).open("r+b") as file:
        for name, kind, offset in stored_constants(read_model(copy), "decode"):
            if name == "embedding_weight":
                width = kind.dimensions[1].constant.size
                file.seek(offset)  # a blob's own description: its values begin at its third number
                start = int(np.frombuffer(file.read(24), "<u8")[2])
                file.seek(start + 2 * width * LAST)
                file.write(np.full(width, worst, np.float16).tobytes())
    return copy


def rows_of_table(shape: tuple[int, ...], ids: Tensor, worst: float) -> Tensor:
    """Rows of a host's table, that of the last token spoilt too."""
    rows = torch.sin(ids[0].float()[:, None] * torch.arange(1, shape[2] + 1)).half().float()
    rows[ids[0] == LAST] = worst
    return rows[None]
