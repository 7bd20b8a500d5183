"""What a case of an operation is, and the tensors that cases are made of: the same ones in each run."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from coremltools.converters.mil.mil import Builder as mb
from torch import Tensor


@dataclass(frozen=True)
class Case:
    name: str
    inputs: tuple[Tensor, ...]
    build: Callable[..., Any]
    expected: Callable[..., Any]

    @property
    def operation(self) -> str:
        return self.name.split()[0]


generator = torch.Generator().manual_seed(0)


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=generator)


def uniform(*shape: int) -> Tensor:
    return torch.rand(shape, generator=generator) * 0.9 + 0.05


def integers(*values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def array(values: Tensor) -> Any:
    return values.numpy()


CASES: list[Case] = []


def case(name: str, inputs: Any, build: Callable[..., Any], expected: Callable[..., Any]) -> None:
    CASES.append(Case(name, inputs if isinstance(inputs, tuple) else (inputs,), build, expected))


def elementwise(name: str, expected: Callable[..., Tensor], *inputs: Tensor, **parameters: Any) -> None:
    keys = ("x", "y")[: len(inputs)]
    operation = name.split()[0]
    case(
        name,
        inputs,
        lambda *variables: getattr(mb, operation)(**dict(zip(keys, variables, strict=True)), **parameters),
        expected,
    )


X = normal(2, 3, 4, 5) * 2
OTHER = normal(3, 1, 5)
