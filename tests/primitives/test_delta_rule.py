"""The delta rule in chunks against token by token in float64, on keys that are random and on keys that repeat."""

import pytest
import torch
from figures import psnr
from torch import Tensor

from coreai_recipes.primitives import delta_rule as module
from coreai_recipes.primitives.delta_rule import delta_rule, unit_upper_inverse
from coreai_recipes.primitives.linear_state import LinearState

G, M, K, V = 2, 3, 12, 10
KEYS = {"random": 0, "one repeated": 1, "two in turn": 2}


def by_tokens(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """One token after another, in float64."""
    q, k, v, g, beta, state = (x.double() for x in (q, k, v, g, beta, state))
    read = []
    for t in range(v.shape[3]):
        at = slice(t, t + 1)
        decay = g[..., at].exp()
        state = state * (decay if decay.shape[2] == 1 else decay.transpose(2, 3))
        state = state + beta[..., at] * (v[..., at] - state @ k[..., at]) @ k[..., at].transpose(2, 3)
        read.append(state @ q[..., at])
    return torch.cat(read, 3), state


def in_chunks(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    read, left, _ = delta_rule(q, k, v, g, beta, LinearState(state))
    return read, left.high


def inputs(
    tokens: int, distinct: int = 0, forgets: float = 0.01, largest: float = 1.0, by_column: bool = False
) -> tuple[Tensor, ...]:
    """q, k, v, g, beta and a state; `distinct` tokens in turn, where it is not 0."""
    generator = torch.Generator().manual_seed(tokens)

    def random(*shape: int) -> Tensor:
        drawn = torch.randn(*shape[:-1], distinct or shape[-1], generator=generator)
        return drawn.repeat(*(1,) * (len(shape) - 1), -(-shape[-1] // drawn.shape[-1]))[..., : shape[-1]]

    q, k = (torch.nn.functional.normalize(random(G, 1, K, tokens), dim=2) for _ in range(2))
    g = -forgets * random(*((G, 1, K) if by_column else (G, M, 1)), tokens).abs()
    beta = largest * torch.sigmoid(random(G, M, 1, tokens) + 3)
    return q * K**-0.5, k, random(G, M, V, tokens), g, beta, torch.randn(G, M, V, K, generator=generator)


@pytest.mark.parametrize("by_column", [False, True], ids=["by head", "by channel"])
@pytest.mark.parametrize("largest", [1.0, 2.0])
@pytest.mark.parametrize("keys", KEYS)
@pytest.mark.parametrize("tokens", [1, 2, 31, 32, 33, 150])
def test_chunks_are_token_by_token(tokens: int, keys: str, largest: float, by_column: bool) -> None:
    given = inputs(tokens, KEYS[keys], largest=largest, by_column=by_column)
    (read, state), (wanted, left) = in_chunks(*given), by_tokens(*given)
    assert min(psnr(wanted, read), psnr(left, state)) >= 115


def by_powers(a: Tensor) -> Tensor:
    """The same inverse by the product (I - A)(I + A^2)(I + A^4)..."""
    a, size = a.triu(1), a.shape[-1]
    eye, power = torch.eye(size), -a
    inverse = eye + power
    for _ in range((size - 1).bit_length() - 1):
        power = power @ power
        inverse = inverse @ (eye + power)
    return inverse


@pytest.mark.parametrize(("keys", "most"), [("one repeated", 40), ("two in turn", 90)])
def test_the_product_of_powers_is_wrong_where_keys_repeat(
    keys: str, most: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = inputs(150, KEYS[keys], largest=2.0)
    monkeypatch.setattr(module, "unit_upper_inverse", by_powers)
    assert psnr(by_tokens(*given)[0], in_chunks(*given)[0]) < most


@pytest.mark.parametrize("size", [2, 5, 32])
def test_the_inverse_sees_what_stands_above_the_diagonal_alone(size: int) -> None:
    a = torch.rand(3, size, size, dtype=torch.float64)
    wanted = torch.linalg.inv(torch.eye(size, dtype=torch.float64) + a.triu(1))
    assert torch.allclose(unit_upper_inverse(a), wanted, atol=1e-9)


@pytest.mark.parametrize("by_column", [False, True], ids=["by head", "by channel"])
def test_a_head_that_forgets_at_once_is_as_exact(by_column: bool) -> None:
    """Sums from the start of a chunk are near -1000 there, of whose differences float32 leaves 1e-4."""
    given = inputs(64, forgets=40.0, by_column=by_column)
    assert float(given[3].cumsum(3).min()) < -500
    assert psnr(by_tokens(*given)[0], in_chunks(*given)[0]) >= 130


def test_a_token_that_neither_writes_nor_forgets_leaves_the_state() -> None:
    q, k, v, g, beta, state = inputs(40)
    real = torch.arange(40) < 27
    whole = in_chunks(q, k, v, g * real, beta * real, state)[1]
    assert psnr(by_tokens(*(x[..., :27] for x in (q, k, v, g, beta)), state)[1], whole) >= 115
