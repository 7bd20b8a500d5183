"""What a call computes once, before any layer: the first hidden state; each kind's angles, mask and place to write."""

from typing import cast

import torch
from torch import Tensor, nn

from coreai_recipes.decoder.front.call_shape import CallShape, Sharing
from coreai_recipes.decoder.states import StateSpec, carried_specs, owner_of, rows_specs, state_specs
from coreai_recipes.primitives import alibi
from coreai_recipes.primitives.attention import rows_of_kind
from coreai_recipes.primitives.buffer import since_commit
from coreai_recipes.primitives.cache import (
    full_key_positions,
    mask,
    padding_of,
    ring_key_positions,
    ring_placement,
)
from coreai_recipes.primitives.carried import tail_placement
from coreai_recipes.primitives.layer_inputs import LayerInputs
from coreai_recipes.primitives.per_layer import PerLayerInput
from coreai_recipes.primitives.rotary import Rotary, build_rotary
from coreai_recipes.recipe.schema import RGLRU, ChunkedAttention, Recipe, RotaryFold, Temperature


class Front(nn.Module):
    """The modules are the decoder's own: the front holds no weights but its embedding's and its per-layer input's."""

    def __init__(
        self,
        recipe: Recipe,
        embedding: nn.Module,
        per_layer: PerLayerInput | None = None,
        folded: RotaryFold | None = None,
        positions: int | None = None,
    ) -> None:
        super().__init__()
        self.embedding, self.per_layer = embedding, per_layer
        self.kinds = {name: recipe.model.kinds[name] for name in dict.fromkeys(recipe.model.layer_kinds)}
        self.owners = {name: owner_of(recipe, name) for name in self.kinds}
        self.states, self.carried = state_specs(recipe, positions), carried_specs(recipe)
        self.buffer, self.row_buffers = recipe.export.buffer, rows_specs(recipe)
        self.keys_last, self.padded = recipe.export.keys_last, recipe.export.padded
        self.is_functional = recipe.export.is_functional
        self.rotaries = nn.ModuleDict(
            {
                name: build_rotary(kind.rotary, kind.attention.rotary_dim, folded, recipe.export.context)
                for name, kind in self.kinds.items()
            }
        )

    def rotary(self, name: str) -> Rotary:
        return cast(Rotary, self.rotaries[name])

    def pairs(self, name: str) -> int:
        """How many pairs the angles of a kind hold; 0 when it has no rotary."""
        return len(self.rotary(name).inv_freq)

    def state(self, name: str) -> StateSpec:
        """The states that layers of kind `name` attend to."""
        return self.states[self.owners[name]]

    def window(self, name: str) -> int | None:
        """How many of the latest positions layers of kind `name` see; None where they see all."""
        kept = rows_of_kind(self.kinds[self.owners[name]])
        return None if kept is None else kept.window

    @property
    def state_bytes(self) -> int:
        """Of what a session keeps, in float16."""
        specs = self.states.values(), self.carried.values(), self.row_buffers.values()
        return sum(spec.bytes for each in specs for spec in each)

    def attends(self, name: str) -> bool:
        """Whether layers of kind `name` have keys and values to attend to."""
        return self.owners[name] in self.states

    def tail(self, name: str) -> int:
        """How many inputs of earlier positions the convolution of a kind sees; 0 where it has none."""
        tails = (spec.tensor for spec in self.carried.values() if spec.kind == name and spec.tensor.is_tail)
        return next((tensor.shape[0] for tensor in tails), 0)

    def starts(self, name: str) -> bool:
        """Whether layers of kind `name` do something else with the first token of all."""
        return isinstance(self.kinds[name].attention, RGLRU)

    def is_buffered(self, name: str) -> bool:
        """Whether layers of kind `name` keep rows in a package's buffer."""
        return any(spec.kind == name for spec in self.row_buffers.values())

    def shares(self, name: str) -> bool:
        """Whether layers of kind `name` attend to a cache of another kind."""
        return self.owners[name] != name

    def is_shared(self, name: str) -> bool:
        """Whether layers of another kind attend to the cache of kind `name`."""
        return any(owner == name and kind != name for kind, owner in self.owners.items())

    def sharing(self, function: str) -> Sharing:
        """How layers that share a cache see it in a function of the package.

        With one token a cache is the same before and after the layers that share it.
        """
        if function == "decode" or not any(self.shares(name) for name in self.kinds):
            return "seen"
        return "last" if function == "prefill" else "after"

    def call(self, tokens: int, cached: bool = True) -> CallShape:
        """A call of torch's own with so many tokens."""
        return CallShape(self, tokens, cached=cached)

    def call_of(self, function: str, tokens: int) -> CallShape:
        """A call of a function of the package."""
        return CallShape(self, tokens, self.sharing(function), function, padded=self.padded, buffer=self.buffer)

    def slopes(self, name: str) -> tuple[object, ...] | None:
        """What the slopes of a kind's heads are made of."""
        spec = self.kinds[name].attention
        return None if spec.alibi is None else (spec.alibi, spec.num_heads, spec.num_kv_heads, spec.score_scale)

    def puts_keys_last(self, keys: int, queries: int) -> bool:
        """Whether scores have their keys on the last axis; one query's one score lies either way."""
        return self.keys_last and queries == 1 and keys > 1

    def forward(
        self, call: CallShape, input_ids: Tensor, position: Tensor, count: Tensor, rows: Tensor | None = None
    ) -> tuple[Tensor, dict[str, LayerInputs], Tensor | None]:
        """Of a `call`: input_ids (1, S), `position` and `count` (1,) as the package's contract says, `rows`
        (1, S, L * P) of the per-layer table -> x (N, C, 1, S), inputs by kind, the per-layer inputs (L, P, 1, S)."""
        inputs = self.see(call, position, count)
        x, per_layer = self.embed(call, position, input_ids, None, rows)
        return x, inputs, per_layer

    def embed(
        self,
        call: CallShape,
        position: Tensor,
        input_ids: Tensor | None,
        embedded: Tensor | None,
        rows: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """x and the per-layer inputs of `input_ids`, or of their rows of the table, `embedded` (1, S, C), where the
        host looks them up."""
        positions = self._positions(call, position)
        if embedded is not None:
            x = self.embedding.from_rows(embedded, positions)  # type: ignore[operator]
        else:
            x = self.embedding(input_ids, positions)
        return x, None if self.per_layer is None else self.per_layer(x[:1], rows)  # of streams the first

    def _positions(self, call: CallShape, position: Tensor) -> Tensor:
        """Of the call's tokens, (S,)."""
        return position + torch.arange(call.tokens, dtype=torch.int32, device=position.device)

    def see(
        self, call: CallShape, position: Tensor, count: Tensor, base: Tensor | None = None
    ) -> dict[str, LayerInputs]:
        """What the layers of each kind are given, by kind; `base` (1,) is the position of the last commit, in a call on
        a buffer."""
        queries, cached = call.tokens, call.cached
        positions = self._positions(call, position)
        angles: dict[str, dict[str, Tensor]] = {}
        masks: dict[str, Tensor] = {}
        places: dict[str, dict[str, Tensor]] = {}
        padding = padding_of(queries, count) if cached and queries > 1 else None
        temperatures: dict[str, Tensor | None] = {}
        tails: dict[str, Tensor] = {}
        for name in self.kinds:
            asked = position + count - 1 if call.tokens_of(name) < queries else positions
            if call.angle_group(name) == name:
                angles[name] = self.rotary(name).given(asked)
            if call.temperature_group(name) == name:
                spec = self.kinds[name].attention.temperature
                temperatures[name] = None if spec is None else _temperature(spec, asked)
            if call.tail_group(name) == name and self.tail(name) and padding is not None and not call.buffer:
                tails[name] = tail_placement(self.tail(name), queries, count)
            if not self.attends(name):
                continue
            if call.mask_group(name) == name:
                if not cached:
                    masks[name] = self._see(name, positions, positions, self.window(name))
                elif call.reads_after(name):
                    masks[name] = self._mask_after(name, asked, position + count)
                else:
                    masks[name] = self._mask(name, positions, position)
            if call.place_group(name) == name:
                places[name] = self._place(name, position, count, padding) if cached else {}
        inputs = {}
        for name in self.kinds:
            turns = angles[call.angle_group(name)]
            temperature = temperatures[call.temperature_group(name)]
            tail = tails.get(call.tail_group(name))
            since = {} if base is None else self._since(name, base, position)
            if self.attends(name):
                seen, place = masks[call.mask_group(name)], places[call.place_group(name)] | since
                inputs[name] = LayerInputs(seen, temperature=temperature, tail=tail, padding=padding, **turns, **place)
            else:
                starts = (positions == 0).float().view(1, 1, 1, -1) if self.starts(name) else None
                inputs[name] = LayerInputs(
                    None, temperature=temperature, tail=tail, starts=starts, padding=padding, **turns, **since
                )
        return inputs

    def _since(self, name: str, base: Tensor, position: Tensor) -> dict[str, Tensor]:
        """Which rows of a buffer a call at `position` sees."""
        if not self.is_buffered(name):
            return {}
        return since_commit(self.buffer, self.tail(name), base, position)

    def placed(self, positions: Tensor) -> dict[str, LayerInputs]:
        """Where a host of another project makes the masks, of tokens at `positions` (S,): the angles and temperature of
        each kind, its mask empty."""
        inputs = {}
        for name in self.kinds:
            spec = self.kinds[name].attention.temperature
            temperature = None if spec is None else _temperature(spec, positions)
            turns = self.rotary(name).given(positions)
            inputs[name] = LayerInputs(torch.empty(0), temperature=temperature, **turns)
        return inputs

    def _mask(self, name: str, positions: Tensor, position: Tensor) -> Tensor:
        """The mask of the call's own queries over what their cache gives them."""
        state = self.state(name)
        if state.window is None:
            return self.seen(name, positions)
        if positions.shape[0] == 1:  # the one token is in its row before the attention looks
            return self._see(name, ring_key_positions(state.rows, position + 1), positions, state.window)
        held = torch.cat((ring_key_positions(state.rows, position), positions))  # (rows + S,)
        return self._see(name, held, positions, state.window)

    def seen(self, name: str, positions: Tensor, keys: Tensor | None = None) -> Tensor:
        """The mask of queries at `positions` over a full cache, or over `keys` at these positions, of which a window
        may be all that is seen."""
        if keys is None:
            keys = full_key_positions(self.state(name).rows, positions.device)
        return self._see(name, keys, positions, self.window(name))

    def _place(self, name: str, position: Tensor, count: Tensor, padding: Tensor | None) -> dict[str, Tensor]:
        """The first row that a call writes, or where its tokens go where several come into a ring."""
        state = self.state(name)
        if state.window is None:
            return {"first": position}
        if padding is None:
            return {"first": position % state.rows}
        placement = ring_placement(state.rows, position, count, padding)
        return {"put": placement.put, "kept": placement.kept}

    def _mask_after(self, name: str, asked: Tensor, next_position: Tensor) -> Tensor:
        """The mask of queries at `asked` over the states, in which all before `next_position` (1,) is written.

        A ring then still holds what the first of them needs: its rows beyond the window are as many as a `score` has
        tokens besides the last.
        """
        state = self.state(name)
        if state.window is None:
            return self.seen(name, asked)
        return self._see(name, ring_key_positions(state.rows, next_position), asked, state.window)

    def chunk(self, name: str) -> int | None:
        """The positions of a chunk, where keys of others are not seen and there can be others."""
        spec = self.kinds[name].attention
        return spec.chunk if isinstance(spec, ChunkedAttention) and spec.chunk < self.state(name).rows else None

    def _see(self, name: str, keys: Tensor, queries: Tensor, window: int | None) -> Tensor:
        """The mask of the positions `queries` over the positions `keys`, and how scores fall with distance."""
        keys_last, spec = self.puts_keys_last(keys.shape[0], queries.shape[0]), self.kinds[name].attention
        hidden = mask(keys, queries, window, keys_last, self.chunk(name))
        if spec.alibi is None:
            return hidden
        heads = spec.num_heads, spec.num_kv_heads
        return hidden + alibi.bias(spec.alibi, *heads, spec.score_scale, keys, queries, keys_last)


def _temperature(spec: Temperature, positions: Tensor) -> Tensor:
    """(1, 1, 1, S) float32: the factor of queries at `positions` (S,)."""
    whole = ((positions + spec.shift) // spec.original_context).float()
    return (1 + spec.beta * torch.log(1 + whole)).view(1, 1, 1, -1)
