"""Recipe -> Decoder: the torch modules of a recipe, composed on the meta device, and filled with weights.

The Decoder is what is compared with transformers, and its very modules are what the exporter converts. It has the
package's own form: one sequence, channels first (1, C, 1, S), states that are read and written by position.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from coreai_recipes.primitives.attention import build_attention
from coreai_recipes.primitives.cache import (
    Cache,
    FullCache,
    NoCache,
    RingCache,
    full_key_positions,
    mask,
    ring_key_positions,
    ring_sources,
)
from coreai_recipes.primitives.mlp import build_mlp
from coreai_recipes.primitives.norm import build_norm
from coreai_recipes.primitives.registry import primitive
from coreai_recipes.primitives.rotary import Rotary, build_rotary
from coreai_recipes.recipe.rules import Problem
from coreai_recipes.recipe.schema import LayerKind, Recipe, SlidingAttention

ReadParameter = Callable[[str], Tensor]


@dataclass(frozen=True)
class StateSpec:
    """The K and V states of one kind: (layers, KV heads, rows, head_dim) each, float16 in the package."""

    kind: str
    layers: int
    num_kv_heads: int
    rows: int
    head_dim: int
    window: int | None

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return (self.layers, self.num_kv_heads, self.rows, self.head_dim)


@dataclass(frozen=True)
class LayerInputs:
    """What the front computes once for all layers of a kind: cos, sin, mask and the place to write."""

    cos: Tensor
    sin: Tensor
    mask: Tensor
    place: Tensor | None  # row of a ring for one token, source of each row for several; None for a full cache


def state_specs(recipe: Recipe) -> dict[str, StateSpec]:
    """The states of each kind that owns a cache, by kind, in the order of first use.

    A full cache has spare rows for the padding of a call at its very end; a ring has as many rows beyond its window as
    `score` may roll back.
    """
    kinds, functions = recipe.model.layer_kinds, recipe.export.functions
    specs = {}
    for name in dict.fromkeys(kinds):
        attention = recipe.model.kinds[name].attention
        window = attention.window if isinstance(attention, SlidingAttention) else None
        if window is None:
            # the last call may start at context - 1; rows in whole blocks of 32, the engine's alignment
            rows = -(-(recipe.export.context + max(functions.queries.values()) - 1) // 32) * 32
        else:
            rows = window + (functions.score - 1 if functions.score else 0)
        specs[name] = StateSpec(name, kinds.count(name), attention.num_kv_heads, rows, attention.head_dim, window)
    return specs


class Layer(nn.Module):
    """One layer of a kind: x (1, C, 1, S) -> (1, C, 1, S)."""

    def __init__(self, recipe: Recipe, name: str) -> None:
        super().__init__()
        model, kind = recipe.model, recipe.model.kinds[name]
        norm, hidden_size = model.norm_of(name), model.hidden_size
        self.kind = name
        self.attention_norm = build_norm(norm, hidden_size)
        self.attention = build_attention(kind, hidden_size, norm)
        self.mlp_norm = build_norm(norm, hidden_size)
        self.mlp = build_mlp(kind.mlp, hidden_size)
        sandwich = model.placement_of(name) == "sandwich"
        self.attention_post_norm = build_norm(norm, hidden_size) if sandwich else nn.Identity()
        self.mlp_post_norm = build_norm(norm, hidden_size) if sandwich else nn.Identity()

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, cache: Cache) -> Tensor:
        x = x + self.attention_post_norm(self.attention(self.attention_norm(x), cos, sin, mask, cache))
        out: Tensor = x + self.mlp_post_norm(self.mlp(self.mlp_norm(x)))
        return out


class Front(nn.Module):
    """What is computed once a call: the first hidden state, and each kind's angles, mask and place to write."""

    def __init__(self, recipe: Recipe, embedding: nn.Module) -> None:
        super().__init__()
        self.embedding = embedding
        self.kinds = {name: recipe.model.kinds[name] for name in dict.fromkeys(recipe.model.layer_kinds)}
        self.states = state_specs(recipe)
        self.rotaries = nn.ModuleDict(
            {name: build_rotary(kind.rotary, kind.attention.head_dim) for name, kind in self.kinds.items()}
        )

    def pairs(self, name: str) -> int:
        """How many pairs the angles of a kind hold; 0 when it has no rotary."""
        return len(self.rotary(name).inv_freq)

    def rotary(self, name: str) -> Rotary:
        return cast(Rotary, self.rotaries[name])

    def angle_group(self, name: str) -> str:
        """The first kind with the same rotary: kinds that turn alike share their cos and sin."""
        return next(n for n, kind in self.kinds.items() if _turns_like(kind, self.kinds[name]))

    def mask_group(self, name: str) -> str:
        """The first kind with the same rows and window: kinds that see alike share their mask."""
        spec = self.states[name]
        return next(n for n, s in self.states.items() if (s.rows, s.window) == (spec.rows, spec.window))

    def forward(
        self, input_ids: Tensor, position: Tensor, count: Tensor, cached: bool = True
    ) -> tuple[Tensor, dict[str, LayerInputs]]:
        """input_ids (1, S), `position` and `count` (1,) as the package's contract says -> x and the inputs by kind."""
        queries = input_ids.shape[1]
        positions = position + torch.arange(queries, dtype=torch.int32, device=input_ids.device)  # (S,)
        angles: dict[str, tuple[Tensor, Tensor]] = {}
        masks: dict[str, tuple[Tensor, Tensor | None]] = {}
        for name in self.kinds:
            if self.angle_group(name) == name:
                cos, sin = self.rotary(name).angles(positions.unsqueeze(0))
                angles[name] = cos.transpose(1, 2).unsqueeze(2), sin.transpose(1, 2).unsqueeze(2)  # (1, R/2, 1, S)
            if self.mask_group(name) == name:
                masks[name] = self._mask_and_place(name, positions, position, count, cached)
        inputs = {
            name: LayerInputs(*angles[self.angle_group(name)], *masks[self.mask_group(name)]) for name in self.kinds
        }
        return self.embedding(input_ids), inputs

    def _mask_and_place(
        self, name: str, positions: Tensor, position: Tensor, count: Tensor, cached: bool
    ) -> tuple[Tensor, Tensor | None]:
        state = self.states[name]
        if not cached:
            return mask(positions, positions, state.window), None
        if state.window is None:
            return mask(full_key_positions(state.rows, positions.device), positions, None), None
        if positions.shape[0] == 1:  # the token is in its row before the attention looks
            return mask(ring_key_positions(state.rows, position + 1), positions, state.window), position % state.rows
        held = torch.cat((ring_key_positions(state.rows, position), positions))  # (rows + S,)
        return mask(held, positions, state.window), ring_sources(state.rows, position, count)


class Decoder(nn.Module):
    """A decoder language model, built from a recipe. Parameters are on the meta device until filled."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        model = recipe.model
        self.recipe = recipe
        self.embedding = primitive("embedding", "table")(model.vocab_size, model.hidden_size, model.embedding_scale)
        self.layers = nn.ModuleList(Layer(recipe, name) for name in model.layer_kinds)
        self.norm = build_norm(model.norm, model.hidden_size)
        self.head = primitive("head", "linear")(
            model.vocab_size, model.hidden_size, model.head.tied, model.head.softcap
        )
        # not a submodule: it holds no weights but the embedding's, which has its name already
        self._front = [Front(recipe, self.embedding)]
        kinds = model.layer_kinds
        self.slots = [kinds[:index].count(name) for index, name in enumerate(kinds)]  # each layer's place in its states

    @property
    def front(self) -> Front:
        return self._front[0]

    def make_states(self, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
        """Empty states by name, `k_KIND` and `v_KIND`, as the package declares them."""
        specs = self.front.states.values()
        return {f"{half}_{spec.kind}": torch.zeros(spec.shape, dtype=dtype) for spec in specs for half in "kv"}

    def forward(
        self,
        input_ids: Tensor,
        position: int = 0,
        count: int | None = None,
        states: dict[str, Tensor] | None = None,
    ) -> Tensor:
        """Logits (1, S, V) of `input_ids` (1, S), whose first token stands at `position`.

        With `states`, earlier calls are seen and this one is written, but for what comes after the first `count`
        tokens. Without, the sequence is all there is.
        """
        at = torch.tensor([position], dtype=torch.int32)
        real = torch.tensor([input_ids.shape[1] if count is None else count], dtype=torch.int32)
        x, inputs = self.front(input_ids, at, real, cached=states is not None)
        for index, layer in enumerate(self.stack):
            given = inputs[layer.kind]
            cache = NoCache() if states is None else self.cache(index, states, at, given.place)
            x = layer(x, given.cos, given.sin, given.mask, cache)
        return self.logits(x)

    @property
    def stack(self) -> list[Layer]:
        """The layers in running order."""
        return cast(list[Layer], list(self.layers))

    def cache(self, index: int, states: dict[str, Tensor], position: Tensor, place: Tensor | None) -> Cache:
        """The cache of layer `index` in `states`."""
        kind, slot = self.stack[index].kind, torch.tensor([self.slots[index]], dtype=torch.int32)
        return make_cache(states[f"k_{kind}"], states[f"v_{kind}"], slot, position, place)

    def logits(self, x: Tensor) -> Tensor:
        """Logits (1, S, V) of the last hidden state x (1, C, 1, S)."""
        weight = cast(Tensor, self.embedding.weight)
        table = weight[..., None, None] if self.recipe.model.head.tied else None  # (V, C, 1, 1)
        return cast(Tensor, self.head(self.norm(x), table))


def make_cache(keys: Tensor, values: Tensor, slot: Tensor, position: Tensor, place: Tensor | None) -> Cache:
    """A ring when the front gave a `place` to write, else a full cache."""
    if place is None:
        return FullCache(keys, values, slot, position)
    return RingCache(keys, values, slot, place)


def build_decoder(recipe: Recipe) -> Decoder:
    """The recipe's Decoder on the meta device. Raises UserError for what a recipe can say but nothing can build yet."""
    from coreai_recipes.errors import RecipeError

    RecipeError.collect(f"{recipe.name}: {'.'.join(map(str, p.location))}: {p.message}" for p in unbuildable(recipe))
    with torch.device("meta"):
        return Decoder(recipe).eval()


def unbuildable(recipe: Recipe) -> Iterator[Problem]:
    """What the recipe language can already say and no primitive can do yet."""
    if recipe.model.embedding.per_layer is not None:
        yield Problem(("model", "embedding", "per_layer"), "per-layer embeddings cannot be built yet")
    for name, kind in recipe.model.kinds.items():
        if kind.attention.shares_kv_with is not None:
            at = ("model", "kinds", name, "attention", "shares_kv_with")
            yield Problem(at, "layers that share another's cache cannot be built yet")


def parameter_offset(recipe: Recipe, name: str) -> float:
    """What is added to a stored parameter when it is read: 1 for the weight of a `1+w` norm, else 0."""
    model, parts = recipe.model, name.split(".")
    if parts[-1] != "weight" or not parts[-2].endswith("norm"):
        return 0.0
    norm = model.norm
    if parts[0] == "layers":
        kind = model.layer_kinds[int(parts[1])]
        norm = model.norm_of(kind)
        qk_norm = model.kinds[kind].attention.qk_norm
        if parts[-2] in ("q_norm", "k_norm") and qk_norm is not None:
            norm = qk_norm.norm or norm
    return 1.0 if norm.weight == "1+w" else 0.0


def fill(module: nn.Module, read: ReadParameter, prefix: str = "") -> None:
    """Give every parameter of `module` the tensor that `read(prefix + name)` gives, float32, in place of meta ones."""
    for name, parameter in list(module.named_parameters()):
        tensor = read(prefix + name).to(torch.float32).reshape(parameter.shape)
        owner, _, leaf = name.rpartition(".")
        setattr(module.get_submodule(owner), leaf, nn.Parameter(tensor, requires_grad=False))


def empty(module: nn.Module) -> None:
    """Give back the memory of a filled module: its parameters return to the meta device."""
    module.to("meta")


def _turns_like(one: LayerKind, other: LayerKind) -> bool:
    return (one.rotary, one.attention.head_dim) == (other.rotary, other.attention.head_dim)
