"""What a package has of each row, put into transformers' own tensors: by their values, never by a name of ours."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from verify_cases import Export, Saved

from coreai_recipes.recipe import load_recipe
from coreai_recipes.verification import run_stages
from coreai_recipes.verification.exchange import Exchange


@dataclass
class Matrix:
    """A parameter in two blocks."""

    values: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.values.shape)

    def blocks(self) -> Any:
        yield from self.values.split(3)

    def read(self) -> Tensor:
        return self.values

    def read_rows(self, rows: Any) -> Tensor:
        return self.values[list(rows)]


def test_rows_are_known_again_in_fused_turned_and_stacked_tensors_and_by_themselves() -> None:
    generator = torch.Generator().manual_seed(0)
    one, other = (torch.randn(5, 8, generator=generator) for _ in range(2))
    experts = torch.randn(2, 4, 6, generator=generator)
    originals = {"one": Matrix(one), "other": Matrix(other), "experts": Matrix(experts)}
    stored = {name: Matrix(1.5 * matrix.values) for name, matrix in originals.items()}
    exchange = Exchange(cast(Any, originals), cast(Any, stored))
    unknown = torch.randn(3, 8, generator=generator)
    assert torch.equal(exchange(torch.cat((other, unknown, one))), torch.cat((1.5 * other, unknown, 1.5 * one)))
    assert torch.equal(exchange(one[3:4]), 1.5 * one[3:4])
    assert torch.equal(exchange(one.t()), 1.5 * one.t())
    assert torch.equal(exchange(experts), 1.5 * experts)
    assert torch.equal(exchange(one[0]), one[0])  # a vector is not compressed
    assert exchange(unknown) is unknown


def test_a_tensor_that_is_bound_to_the_wrong_layer_is_seen_in_float16(tiny_llama: Saved, export: Export) -> None:
    """The reference held our Decoder with the very bindings of the package: it had them mixed up in the same way."""
    recipe, checkpoint = load_recipe("tiny-llama", ["compress.default.kind=int8"]), tiny_llama[1]
    names = [f"model.layers.{layer}.mlp.up_proj.weight" for layer in (1, 2)]

    class Swapped(type(checkpoint)):  # type: ignore[misc]
        def blocks(self, name: str, rows: range | None = None) -> Any:
            return super().blocks(names[1 - names.index(name)] if name in names else name, rows)

    mixed = object.__new__(Swapped)
    mixed.__dict__ |= checkpoint.__dict__
    package: Path = export(recipe, mixed)
    (halves,) = run_stages(recipe, checkpoint, package, stages=["package_float16"]).stages
    assert halves.passed is False
