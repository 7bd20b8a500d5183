"""transformers' cache, as a reference that goes on from call to call has it."""

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor


def make_cache(model: Any) -> Any:
    """An empty cache of transformers for calls with the arguments of `on_cache`.

    Without a layer of attention its length is where the call starts: Bamba and Granite ask for it, to make a mask that
    no layer takes. So it is of MiniMax's own cache, whose length is that of its first layer, which may keep no keys.
    """
    from transformers import DynamicCache
    from transformers.models.minimax.modeling_minimax import MiniMaxCache

    class Cache(DynamicCache):  # type: ignore[misc]
        start = 0

        def get_seq_length(self, layer_idx: int = 0) -> Any:
            try:
                return super().get_seq_length(layer_idx)
            except ValueError:
                return self.start

        def get_mask_sizes(self, query_length: int, layer_idx: int) -> Any:
            try:
                return super().get_mask_sizes(query_length, layer_idx)
            except ValueError:
                return self.start + query_length, 0

        @property
        def keeps(self) -> bool:
            """Whether it holds anything of the calls so far; of recurrent layers alone, without a length, it does."""
            try:
                return bool(super().get_seq_length())
            except ValueError:
                return True

    class OfMiniMax(MiniMaxCache):  # type: ignore[misc]
        start = 0

        def get_seq_length(self, layer_idx: int = 0) -> int:
            return self.start

        def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
            return self.start + query_length, 0

        @property
        def keeps(self) -> bool:
            return bool(len(self))

    return OfMiniMax() if model.config.model_type == "minimax" else Cache(config=model.config)


def on_cache(model: Any, cache: Any, start: int, length: int) -> dict[str, Any]:
    """The arguments of a call of `length` tokens from position `start` on with a cache of `make_cache`.

    Mamba-2 calls it cache_params, and Bamba begins at position 0 again where positions are not said, as transformers'
    own generate says them.
    """
    cache.start = start
    taken = inspect.signature(model.forward).parameters
    given = {"cache_params" if "cache_params" in taken else "past_key_values": cache}
    return {**given, "position_ids": torch.arange(start, start + length)[None]} if "position_ids" in taken else given


def recurrent_states(cache: Any) -> Iterator[Tensor]:
    """The states of recurrences in a cache of `make_cache`, which may be written to."""
    for layer in cache.layers:
        yield from (state for state in getattr(layer, "recurrent_states", {}).values() if state is not None)
    yield from (state for state in getattr(cache, "linear_cache", ()) if isinstance(state, Tensor))
