"""The tests of sessions, shown to notice: each fault of a cache is seen."""

from typing import Any

import pytest
import torch
from decoder_sessions import FLOOR, PREFILL, in_turn, ring, shifting, worst_figure
from torch import Tensor

from coreai_recipes.decoder.front import front as front_module
from coreai_recipes.decoder.model import Decoder
from coreai_recipes.primitives import cache as cache_module
from coreai_recipes.primitives.cache import Placement


@pytest.fixture(autouse=True)
def _on_small_tensors(small_tensors: None) -> None:
    pass


# --- the tests above, shown to notice -------------------------------------------------------------------------------

SHORT_PLAN = [(0, 9, PREFILL), (9, 3, PREFILL), (12, 1, 1), (13, 1, 1)]


RING_PLAN = in_turn(16, 16, 3, then_decode_to=37)


ROLLBACK_PLAN = [*in_turn(16, 16, then_decode_to=45), (41, 1, 1), (42, 1, 1)]


def padding_enters(rows: int, position: Tensor, count: Tensor, padding: Tensor) -> Placement:
    return cache_module.ring_placement(rows, position, torch.full_like(count, PREFILL), padding)


def nothing_is_written(rows: int, position: Tensor, count: Tensor, padding: Tensor) -> Placement:
    return Placement(torch.zeros(1, 1, rows, padding.shape[2]), torch.ones(1, 1, rows, 1), padding)


def one_row_off(rows: int, next_position: Tensor) -> Tensor:
    return cache_module.ring_key_positions(rows, next_position + 1)


def no_window(
    key_positions: Tensor, query_positions: Tensor, window: int | None, keys_last: bool, chunk: int | None
) -> Tensor:
    return cache_module.mask(key_positions, query_positions, None, keys_last, chunk)


def empty_rows_are_seen(
    key_positions: Tensor, query_positions: Tensor, window: int | None, keys_last: bool, chunk: int | None
) -> Tensor:
    return cache_module.mask(key_positions.abs(), query_positions, window, keys_last, chunk)


def written_before_it_is_seen(self: Any, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    new = torch.stack((keys, values))
    at, placement = int(self.at), self.placement
    rows = self.key_state[at : at + 2]
    rows.copy_(rows * placement.kept + torch.matmul(placement.put, new))
    seen = torch.cat((rows, new), 2)
    return seen[:1], seen[1:]


@pytest.mark.parametrize(
    ("name", "replacement", "plan"),
    [
        ("ring_placement", padding_enters, RING_PLAN),
        ("ring_placement", nothing_is_written, RING_PLAN),
        ("ring_key_positions", one_row_off, RING_PLAN),
        ("mask", no_window, ROLLBACK_PLAN),
        ("mask", empty_rows_are_seen, SHORT_PLAN),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_fault_in_the_ring_is_seen(
    monkeypatch: pytest.MonkeyPatch, name: str, replacement: Any, plan: list[tuple[int, int, int]]
) -> None:
    assert worst_figure(ring(), plan) >= FLOOR
    plain = Decoder.forward

    def faulty_when_cached(self: Decoder, ids: Tensor, *args: Any) -> Tensor:
        with monkeypatch.context() as patch:
            if args:  # the plain sequence it is compared with stays right
                patch.setattr(front_module, name, replacement)
            return plain(self, ids, *args)

    monkeypatch.setattr(Decoder, "forward", faulty_when_cached)
    assert worst_figure(ring(), plan) < 60


def test_a_ring_that_is_written_before_it_is_seen_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module.RingCache, "update", written_before_it_is_seen)
    assert worst_figure(ring(), in_turn(16, 16, 16, then_decode_to=50)) < 60


def test_a_ring_without_rows_to_roll_back_is_seen() -> None:
    assert worst_figure(shifting(), ROLLBACK_PLAN) < 60
