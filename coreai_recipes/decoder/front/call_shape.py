"""A call of a function, as the layers of each kind see it: sizes, and what the front gives to which."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from coreai_recipes.primitives.layer_inputs import FLOAT32, ROTATING, SHARED

if TYPE_CHECKING:
    from coreai_recipes.decoder.front.front import Front

# How layers that share a cache see it.
# seen:   as its owner does, from the owner's own keys and values of this call: what torch does.
# after:  from the states, as the call has left them: what the functions of a package do.
# last:   as `after`, for the last real token alone: `prefill`, which needs nothing else of these layers.
Sharing = Literal["seen", "after", "last"]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class CallShape:
    """A call with so many `tokens`: of a `function` of the package, or of torch's own, which may have no states.

    `padded` is whether a host may fill it up with tokens that are none; `buffer` how many rows there are since the last
    commit, 0 where each call gives all that is carried.
    """

    front: "Front"
    tokens: int
    sharing: Sharing = "seen"
    function: str | None = None
    cached: bool = True
    padded: bool = True
    buffer: int = 0

    @property
    def has_count(self) -> bool:
        """Whether a host says how many of the tokens are real."""
        return self.function != "decode" and self.padded

    @property
    def answered(self) -> int:
        """How many tokens it gives logits of: all in `score`, else the last real one."""
        return self.tokens if self.function == "score" else 1

    @property
    def picks(self) -> bool:
        """Whether the last real token alone goes on to the head, or to the first layers that are run for it alone."""
        return self.function == "prefill"

    @property
    def name(self) -> str:
        """What tells the fragments of its front from those of others."""
        return str(self.tokens) if self.sharing == "seen" else f"{self.tokens}_{self.sharing}"

    def tokens_of(self, kind: str) -> int:
        """How many tokens of the call the layers of a kind are run for."""
        return 1 if self.is_alone(kind) else self.tokens

    def is_alone(self, kind: str) -> bool:
        """Whether the layers of a kind are run for the last real token alone."""
        return self.sharing == "last" and self.front.shares(kind)

    def reads_after(self, kind: str) -> bool:
        """Whether the layers of a kind see their cache as the call has left it."""
        return self.sharing != "seen" and self.front.shares(kind)

    def seen_rows(self, kind: str) -> int:
        """How many keys the layers of a kind attend to in a call of a package."""
        if not self.front.attends(kind):
            return 0
        state = self.front.state(kind)
        joins_new = state.window is not None and self.tokens > 1 and not self.reads_after(kind)
        return state.rows + self.tokens if joins_new else state.rows

    def mask_shape(self, kind: str) -> tuple[int, int, int, int]:
        """(1, K, 1, S), or (G, K, H/G, S) where heads see differently; keys last: (1, 1, 1, K) or (1, G, H/G, K)."""
        rows, attention = self.seen_rows(kind), self.front.kinds[kind].attention
        asked, G, shared = self.tokens_of(kind), 1, 1
        if attention.alibi is not None:
            G, shared = attention.num_kv_heads, attention.num_heads // attention.num_kv_heads
        return (1, G, shared, rows) if self.front.puts_keys_last(rows, asked) else (G, rows, shared, asked)

    def ports(self, kind: str) -> dict[str, Shape]:
        """The inputs by name that layers of a kind are given (`LayerInputs`), those that say where to write last."""
        front, asked, pads = self.front, self.tokens_of(kind), self.tokens > 1 and self.padded
        found: dict[str, Shape] = {}
        found |= front.rotary(kind).ports(asked)
        if front.kinds[kind].attention.temperature:
            found["temperature"] = (1, 1, 1, asked)
        if front.attends(kind):
            found["mask"] = self.mask_shape(kind)
        if front.shares(kind):
            return found
        if front.attends(kind):
            state = front.state(kind)
            if state.window is None or self.tokens == 1:
                found["first"] = (1,)
            elif not front.is_functional or front.is_shared(kind):  # several tokens come into a ring
                found |= {"put": (1, 1, state.rows, self.tokens), "kept": (1, 1, state.rows, 1)}
        if self.buffer and front.is_buffered(kind):
            found |= {"held": (1, 1, 1, self.buffer), "later": (1, 1, self.buffer, self.buffer)}
            if front.tail(kind):
                found["before"] = (1, front.tail(kind), front.tail(kind) + self.buffer)
        elif front.tail(kind) and pads:
            found["tail"] = (1, front.tail(kind), front.tail(kind) + self.tokens)
        if front.starts(kind):
            found["starts"] = (1, 1, 1, self.tokens)
        if pads:
            found["padding"] = (1, 1, self.tokens, 1)
        return found

    def source(self, kind: str, port: str) -> str:
        """The value of the function that a port of a kind's layers takes: kinds that need the same share it."""
        if port in SHARED:
            return port
        if port == "first" and self.front.state(kind).window is None:
            return "position"
        if port in ROTATING:
            return f"{port}_{self.angle_group(kind)}"
        groups = {
            "mask": self.mask_group,
            "temperature": self.temperature_group,
            "tail": self.tail_group,
            "before": self.tail_group,
        }
        return f"{port}_{groups.get(port, self.place_group)(kind)}"

    def is_float32(self, kind: str, port: str) -> bool:
        """Whether a port is computed in float32 up to itself: slopes times positions are, as angles."""
        return port in FLOAT32 or (port == "mask" and self.front.slopes(kind) is not None)

    def angle_group(self, kind: str) -> str:
        """The first kind with the same rotary at the same positions: kinds that turn alike share their cos and sin."""

        def likeness(name: str) -> tuple[object, ...]:
            spec = self.front.kinds[name]
            return spec.rotary, spec.attention.rotary_dim, self.is_alone(name)

        return self._first(kind, likeness)

    def mask_group(self, kind: str) -> str:
        """The first kind with the same rows, window and slopes: kinds that see alike share their mask."""

        def likeness(name: str) -> object:
            if not self.front.attends(name):
                return None
            state = self.front.state(name)
            apart = self.reads_after(name) and (self.sharing == "last" or state.window is not None)
            return state.rows, self.front.window(name), apart, self.front.slopes(name), self.front.chunk(name)

        return self._first(kind, likeness)

    def place_group(self, kind: str) -> str:
        """The first kind with a full cache, or with a ring of as many rows: kinds that are written alike."""

        def likeness(name: str) -> object:
            if not self.front.attends(name):
                return None
            state = self.front.state(name)
            return state.window is not None and state.rows

        return self._first(kind, likeness)

    def tail_group(self, kind: str) -> str:
        """The first kind whose convolution has as many taps."""
        return self._first(kind, self.front.tail)

    def temperature_group(self, kind: str) -> str:
        """The first kind whose queries grow alike at the same positions."""
        kinds = self.front.kinds
        return self._first(kind, lambda name: (kinds[name].attention.temperature, self.is_alone(name)))

    def _first(self, kind: str, likeness: Callable[[str], object]) -> str:
        wanted = likeness(kind)
        return next(name for name in self.front.kinds if likeness(name) == wanted)
