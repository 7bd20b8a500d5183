"""The gated delta rule (Qwen3.5, Qwen3-Next, OLMo-Hybrid, Kimi Linear) in static chunks of tokens, for several or one.

Each token reads and corrects a state S, (keys, values) of each value head: S <- e^g S + beta k (v - k (e^g S))^T.
A chunk of C tokens on S, with c the running sum of g, D_ij = exp(c_i - c_j) for j <= i and 0 else, E = exp(c):

    A = beta (k k^T) * D below the diagonal     T = (I + A)^-1     u = T beta (v - E (k S))
    o = E (q S) + ((q k^T) * D) u               S <- exp(c_C) S + (exp(c_C - c) k)^T u

which is transformers' chunk form (modeling_qwen3_5, torch_chunk_gated_delta_rule) with one product by T, not two.
Here tokens are the last axis, so all of it is transposed: S is (values, keys), T and D stand on their heads. Where each
key dimension fades by a factor of its own (Kimi Linear), D and E stand inside the products over keys.
"""

import torch
from torch import Tensor

from coreai_recipes.primitives.buffer import HeldState
from coreai_recipes.primitives.decays import column_decays, decays
from coreai_recipes.primitives.linear_state import LinearState, read_faded

CHUNK = 32  # of 64 the inverse alone would be a third of the work, of 32 it is a ninth


def delta_rule(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: LinearState
) -> tuple[Tensor, LinearState, Tensor]:
    """q and k (G, 1, K, S) of unit length, q scaled; v (G, M, V, S); beta (G, M, 1, S); g <= 0 of the same shape, or
    (G, 1, K, S) of each key dimension; a state (G, M, V, K) -> what is read (G, M, V, S), the next state, and what each
    token adds to it at its key, u (G, M, V, S). M value heads share a key head."""
    read, added = [], []
    for start in range(0, v.shape[3], CHUNK):
        part = slice(start, min(start + CHUNK, v.shape[3]))
        found, state, u = _chunk(q[..., part], k[..., part], v[..., part], g[..., part], beta[..., part], state)
        read.append(found)
        added.append(u)
    if len(read) == 1:
        return read[0], state, added[0]
    return torch.cat(read, 3), state, torch.cat(added, 3)


def delta_step(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: HeldState) -> tuple[Tensor, Tensor]:
    """As `delta_rule` of one token, on a state that is only read: what is read, and what the token adds."""
    decay = torch.exp(g.clamp(max=0.0))
    u = beta * (v - read_faded(state, k, decay))  # (G, M, V, 1)
    return read_faded(state, q, decay) + u * (k * q).sum(2, keepdim=True), u


def _chunk(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: LinearState
) -> tuple[Tensor, LinearState, Tensor]:
    if v.shape[3] == 1:
        decay = torch.exp(g.clamp(max=0.0))
        u = beta * (v - read_faded(state, k, decay))  # (G, M, V, 1)
        state = state.advanced(decay, u, k.transpose(2, 3))
        return state.read(q), state, u
    left = decays(g) if g.shape[2] == 1 else column_decays(g)
    u = beta * (v - left.read(state, k))  # (G, M, V, S)
    u = torch.matmul(u, unit_upper_inverse(left.scores(k, k) * beta))
    read = left.read(state, q) + torch.matmul(u, left.scores(k, q))
    return read, left.advanced(state, u, k), u


def unit_upper_inverse(a: Tensor) -> Tensor:
    """(I + A)^-1, A being what stands above the diagonal of `a` (..., S, S).

    Blocks on the diagonal of twice the size from those that are there: T <- T - T (A * M) T, where M is 1 in the upper
    right quarter of each. All that is met on the way is an entry of an inverse of a part of I + A, and these are small;
    in the product (I - A)(I + A^2)(I + A^4)... powers grow like binomials where keys repeat, beyond float32.
    """
    size = a.shape[-1]
    place = torch.arange(size, device=a.device)
    inverse, block = torch.eye(size, dtype=a.dtype, device=a.device), 1
    while block < size:
        same = (place // (2 * block)).unsqueeze(1) == (place // (2 * block)).unsqueeze(0)
        first, second = place // block % 2 == 0, place // block % 2 == 1
        upper = a * (same & first.unsqueeze(1) & second.unsqueeze(0)).to(a.dtype)
        inverse = inverse - (upper if block == 1 else torch.matmul(torch.matmul(inverse, upper), inverse))
        block *= 2
    return inverse
