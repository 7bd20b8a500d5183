"""The scan of Mamba-2's state space in static chunks of tokens, for several or for one alike.

Each token writes to a state S, (values, keys) of each head, and reads it: S <- e^g S + v k^T, o = S q. A chunk of C
tokens on S, with c the running sum of g, D_ij = exp(c_i - c_j) for j <= i and 0 else, E = exp(c):

    o = E (q S) + ((q k^T) * D) v     S <- exp(c_C) S + (exp(c_C - c) k)^T v

which is transformers' chunk form (modeling_bamba, mamba2_chunk_scan). Here tokens are the last axis, so all of it is
transposed, as in `delta_rule`, which corrects where this only adds.
"""

import torch
from torch import Tensor

from coreai_recipes.primitives.buffer import HeldState
from coreai_recipes.primitives.decays import decays
from coreai_recipes.primitives.linear_state import LinearState

CHUNK = 64  # a chunk of 32 multiplies as much: what scores cost less, the state costs more


def state_space(q: Tensor, k: Tensor, v: Tensor, g: Tensor, state: LinearState) -> tuple[Tensor, LinearState]:
    """q and k (G, 1, K, S), v (G, M, V, S), g <= 0 (G, M, 1, S), a state (G, M, V, K) -> what is read (G, M, V, S), and
    the next state. M heads share q and k."""
    read = []
    for start in range(0, v.shape[3], CHUNK):
        part = slice(start, min(start + CHUNK, v.shape[3]))
        found, state = _chunk(q[..., part], k[..., part], v[..., part], g[..., part], state)
        read.append(found)
    return (read[0] if len(read) == 1 else torch.cat(read, 3)), state


def state_space_step(q: Tensor, k: Tensor, v: Tensor, g: Tensor, state: HeldState) -> Tensor:
    """As `state_space` of one token, on a state that is only read: what is read."""
    return torch.exp(g.clamp(max=0.0)) * state.read(q) + v * (k * q).sum(2, keepdim=True)


def _chunk(q: Tensor, k: Tensor, v: Tensor, g: Tensor, state: LinearState) -> tuple[Tensor, LinearState]:
    keys = k.transpose(2, 3)  # (G, 1, S, K)
    if v.shape[3] == 1:
        state = state.advanced(torch.exp(g.clamp(max=0.0)), v, keys)
        return state.read(q), state
    between, since, left = decays(g)
    read = since * state.read(q) + torch.matmul(v, torch.matmul(keys, q) * between)
    return read, state.advanced(since[..., -1:], v * left, keys)
