"""What the functions of a recipe keep between calls: states, in which each layer's keys and values have a place, and
tensors that are carried from call to call, of all layers of a kind together.

`packed`, one state for each geometry (KV heads, rows, head_dim): devices were seen to take few states, and all of one
shape. A layer's keys and values are neighbours there, so that one update writes both. `per_kind`, two for each kind.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, Literal

from coreai_recipes.hosts.logits import ALIGNMENT
from coreai_recipes.primitives.attention import carried_of_kind, row_parts_of_kind, rows_of_kind
from coreai_recipes.primitives.carried import CarriedTensor, low_half
from coreai_recipes.recipe.schema import Recipe

if TYPE_CHECKING:
    from torch import Tensor

Role = Literal["kv", "k", "v"]
CarriedRole = Literal["convolution", "recurrence"]
WHOLE = slice(None)
COMMIT = "commit"  # the function that carries the rows of a buffer into the states before them


@dataclass(frozen=True)
class StateSpec:
    """The keys and values of the layers of one kind that owns a cache.

    Attributes:
        window: how many of its positions are held, in a ring; None where all are.
        keys: the state that its keys are in.
        values: the state that its values are in, None where each layer's stand behind its keys.
        first: how many layers of other kinds stand before its own in these states.
        depth: the size of their first axis.
    """

    kind: str
    layers: int
    num_kv_heads: int
    rows: int
    head_dim: int
    window: int | None
    keys: str
    values: str | None
    first: int
    depth: int

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """That of its states, (depth, KV heads, rows, head_dim)."""
        return (self.depth, self.num_kv_heads, self.rows, self.head_dim)

    @property
    def bytes(self) -> int:
        """Of the keys and values of its layers, in float16."""
        return 2 * 2 * self.layers * self.num_kv_heads * self.rows * self.head_dim

    def at(self, layer: int) -> int:
        """The place of the keys of its `layer`-th layer on the first axis; the values' is the same in a state of their
        own, else the next."""
        return (self.first + layer) * (2 if self.values is None else 1)

    def of_layer(self, states: "Mapping[str, Tensor]", layer: int) -> "tuple[Tensor, Tensor]":
        """Keys and values of its `layer`-th layer in `states`, (KV heads, rows, head_dim) each."""
        at = self.at(layer)
        values = states[self.keys][at + 1] if self.values is None else states[self.values][at]
        return states[self.keys][at], values


@dataclass(frozen=True)
class CarriedSpec:
    """A tensor of all layers of one kind that a function takes as `name` and gives again as `new_name`."""

    kind: str
    layers: int
    tensor: CarriedTensor
    name: str

    @property
    def output(self) -> str:
        return f"new_{self.name}"

    @property
    def role(self) -> CarriedRole:
        return "convolution" if self.tensor.is_tail else "recurrence"

    @property
    def shape(self) -> tuple[int, ...]:
        """(layers, ...)."""
        return (self.layers, *self.tensor.shape)

    @property
    def bytes(self) -> int:
        """In float16."""
        return 2 * prod(self.shape)


@dataclass(frozen=True)
class RowsSpec:
    """The buffer of all layers of one kind, which functions take as `name`, and give their own rows as `new_name`."""

    kind: str
    layers: int
    rows: int
    parts: Mapping[str, int]
    name: str

    role: Literal["rows"] = "rows"

    @property
    def output(self) -> str:
        return f"new_{self.name}"

    @property
    def shape(self) -> tuple[int, int, int]:
        """(layers, rows, columns)."""
        return (self.layers, self.rows, sum(self.parts.values()))

    def new_shape(self, tokens: int) -> tuple[int, int, int]:
        """That of the rows that a call of so many tokens gives."""
        return (self.layers, tokens, self.shape[2])

    @property
    def bytes(self) -> int:
        """In float16."""
        return 2 * prod(self.shape)


@dataclass(frozen=True)
class State:
    """One state of a package: whether it holds keys, values or both, and of which kinds."""

    role: Role
    shape: tuple[int, int, int, int]
    kinds: tuple[StateSpec, ...]


def owner_of(recipe: Recipe, kind: str) -> str:
    """The kind whose cache the layers of `kind` attend to: their own, or that which they share."""
    return recipe.model.kinds[kind].attention.shares_kv_with or kind


def state_specs(
    recipe: Recipe, positions: int | None = None, part: slice = WHOLE, behind: str = ""
) -> dict[str, StateSpec]:
    """The keys and values that the primitive of each kind declares to keep, by kind, in the order of first use.

    A full cache has spare rows for the padding of a call at its very end; a ring has as many rows beyond its window as
    `score` may roll back, or more. Where another project's host names the states, all caches are full. They hold the
    recipe's context, or `positions` where fewer are needed. They are of all layers, or of the `part` that is in one of
    several packages, which ends its states' names with `behind`.
    """
    held = recipe.export.context if positions is None else positions
    kinds, functions = recipe.model.layer_kinds[part], recipe.export.functions
    specs: dict[str, StateSpec] = {}
    for name in dict.fromkeys(kinds):
        kept = rows_of_kind(recipe.model.kinds[name])
        if kept is None:
            continue
        window = kept.window if recipe.export.cache_names is None else None
        if window is None:
            rows = held + recipe.export.most_padding  # the last call may start at context - 1
        else:
            rows = window + (functions.score - 1 if functions.score else 0)
        rows, layers = -(-rows // ALIGNMENT) * ALIGNMENT, kinds.count(name)
        keys, values = f"k_{name}{behind}", f"v_{name}{behind}"
        specs[name] = StateSpec(name, layers, kept.num_kv_heads, rows, kept.head_dim, window, keys, values, 0, layers)
    if recipe.export.cache_names is not None:
        return _paired(specs, *recipe.export.cache_names)
    return _packed(specs, behind) if recipe.export.states == "packed" else specs


def carried_specs(recipe: Recipe, part: slice = WHOLE, behind: str = "") -> dict[str, CarriedSpec]:
    """The tensors that layers carry from call to call, by name, in the order of first use; as `state_specs`, of all
    layers or of a `part`."""
    kinds, in_halves = recipe.model.layer_kinds[part], recipe.export.recurrent_state == "two_float16"
    found = (
        CarriedSpec(kind, kinds.count(kind), tensor, f"{tensor.name}_{kind}{behind}")
        for kind in dict.fromkeys(kinds)
        for declared in carried_of_kind(recipe.model.kinds[kind])
        for tensor in ((declared, low_half(declared)) if in_halves and not declared.is_tail else (declared,))
    )
    return {spec.name: spec for spec in found}


def rows_specs(recipe: Recipe, part: slice = WHOLE, behind: str = "") -> dict[str, RowsSpec]:
    """The buffers of kinds that carry something, by name, where the recipe has such; as `carried_specs`."""
    kinds, rows = recipe.model.layer_kinds[part], recipe.export.buffer
    if not rows:
        return {}
    carrying = dict.fromkeys(spec.kind for spec in carried_specs(recipe, part).values())
    found = (
        RowsSpec(kind, kinds.count(kind), rows, row_parts_of_kind(recipe.model.kinds[kind]), f"rows_{kind}{behind}")
        for kind in carrying
    )
    return {spec.name: spec for spec in found}


def places_of(recipe: Recipe, part: slice = WHOLE) -> list[int]:
    """Each layer's place among those of its kind, which is its place in what they carry."""
    kinds = recipe.model.layer_kinds[part]
    return [kinds[:index].count(kind) for index, kind in enumerate(kinds)]


def slots_of(recipe: Recipe, specs: Mapping[str, StateSpec], part: slice = WHOLE) -> list[int | None]:
    """Each layer's place in the states of `specs` that it attends to: its own, or that of the last layer that owns
    them; None where they are in another package, or there are none."""
    seen: dict[str, int] = {}
    found: list[int | None] = []
    for name in recipe.model.layer_kinds[part]:
        owner = owner_of(recipe, name)
        if owner == name:
            seen[owner] = seen.get(owner, -1) + 1
        found.append(specs[owner].at(seen[owner]) if owner in seen and owner in specs else None)
    return found


def _packed(specs: Mapping[str, StateSpec], behind: str) -> dict[str, StateSpec]:
    """The same with all kinds of one geometry in one state, which is named by the first of them."""
    groups: dict[tuple[int, ...], list[StateSpec]] = {}
    for spec in specs.values():
        groups.setdefault(spec.shape[1:], []).append(spec)
    found: dict[str, StateSpec] = {}
    for group in groups.values():
        state, depth, first = f"kv_{group[0].kind}{behind}", 2 * sum(spec.layers for spec in group), 0
        for spec in group:
            found[spec.kind] = replace(spec, keys=state, values=None, first=first, depth=depth)
            first += spec.layers
    return {kind: found[kind] for kind in specs}


def _paired(specs: Mapping[str, StateSpec], keys: str, values: str) -> dict[str, StateSpec]:
    """The same with all keys in one state and all values in another. All kinds are of one geometry."""
    depth, first, found = sum(spec.layers for spec in specs.values()), 0, dict[str, StateSpec]()
    for kind, spec in specs.items():
        found[kind] = replace(spec, keys=keys, values=values, first=first, depth=depth)
        first += spec.layers
    return found


def states_of(specs: Mapping[str, StateSpec]) -> dict[str, State]:
    """The states by name that hold `specs`, in the order in which every function declares them."""
    found: dict[str, State] = {}
    for spec in specs.values():
        names: dict[str, Role] = {spec.keys: "kv"} if spec.values is None else {spec.keys: "k", spec.values: "v"}
        for name, role in names.items():
            before = found[name].kinds if name in found else ()
            found[name] = State(role, spec.shape, (*before, spec))
    return found
