"""Where a ring keeps each position, against a plain list of what was written where."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from coreai_recipes.primitives.cache import (
    HIDDEN,
    FunctionalCache,
    NoCache,
    OpenCache,
    RingCache,
    RowCache,
    last_of,
    mask,
    padding_of,
    ring_key_positions,
    ring_placement,
)

searched = settings(max_examples=200, derandomize=True, deadline=None)


def one(value: int) -> Tensor:
    return torch.tensor([value], dtype=torch.int32)


@searched
@given(rows=st.integers(1, 12), next_position=st.integers(0, 60))
def test_each_row_holds_the_last_position_that_fell_on_it(rows: int, next_position: int) -> None:
    held = [-1] * rows
    for position in range(next_position):
        held[position % rows] = position
    found = ring_key_positions(rows, one(next_position)).tolist()
    assert [max(position, -1) for position in found] == held
    assert all(position % rows == row for row, position in enumerate(found))  # also of the empty ones


@searched
@given(rows=st.integers(1, 12), position=st.integers(0, 60), queries=st.integers(2, 20), data=st.data())
def test_each_row_takes_the_last_real_token_that_falls_on_it(
    rows: int, position: int, queries: int, data: st.DataObject
) -> None:
    count = data.draw(st.integers(1, queries))
    expected = [-1] * rows
    for token in range(count):
        expected[(position + token) % rows] = token
    found = ring_placement(rows, one(position), one(count), padding_of(queries, one(count)))
    put, kept = found.put.view(rows, queries), found.kept.view(rows)
    for row, token in enumerate(expected):
        assert put[row].tolist() == [float(at == token) for at in range(queries)]
        assert kept[row] == (token < 0)


@searched
@given(queries=st.integers(2, 20), data=st.data())
def test_the_last_real_token_is_picked_whatever_the_others_hold(queries: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, queries))
    x = torch.randn(2, 3, 1, queries).half()
    expected = x[..., count - 1 : count].clone()
    x[..., : count - 1], x[..., count:] = float("nan"), float("-inf")
    assert torch.equal(last_of(x, one(count)), expected)


@searched
@given(window=st.integers(1, 8), start=st.integers(0, 20), queries=st.integers(1, 6))
def test_a_query_sees_the_window_before_it_and_nothing_empty(window: int, start: int, queries: int) -> None:
    keys = torch.arange(-3, 30, dtype=torch.int32)
    asked = torch.arange(start, start + queries, dtype=torch.int32)
    found = mask(keys, asked, window)
    assert found.shape == (1, len(keys), 1, queries)
    assert found.dtype == torch.float32
    for at, query in enumerate(asked.tolist()):
        seen = {key for key, value in zip(keys.tolist(), found[0, :, 0, at].tolist(), strict=True) if value == 0}
        assert seen == {key for key in range(query + 1) if query - key < window}
        assert set(found[0, :, 0, at].tolist()) <= {0.0, HIDDEN}


def states(layers: int, rows: int) -> tuple[Tensor, Tensor]:
    return torch.randn(layers, 2, rows, 4), torch.randn(layers, 2, rows, 4)


@pytest.mark.parametrize("queries", [1, 3])
def test_only_the_layers_own_rows_of_a_full_cache_are_written(queries: int) -> None:
    keys, values = states(3, 10)
    expected_keys, expected_values = keys.clone(), values.clone()
    new_keys, new_values = torch.randn(2, queries, 4), torch.randn(2, queries, 4)
    expected_keys[1, :, 6 : 6 + queries], expected_values[1, :, 6 : 6 + queries] = new_keys, new_values
    seen_keys, seen_values = RowCache(keys, values, one(1), one(6)).update(new_keys, new_values)
    assert torch.equal(keys, expected_keys)
    assert torch.equal(values, expected_values)
    assert torch.equal(seen_keys, expected_keys[1:2])
    assert torch.equal(seen_values, expected_values[1:2])


def test_a_cache_that_a_host_lengthens_is_a_full_one_of_the_rows_that_hold_a_position() -> None:
    """Whatever stands behind them, and however many there are."""
    keys, values = torch.randn(2, 3, 4, 9, 5).unbind()
    new_keys, new_values = torch.randn(2, 4, 2, 5).unbind()
    known = [state.clone() for state in (keys, values)]
    expected = RowCache(*known, one(1), one(4)).update(new_keys, new_values)
    for spare in (0, 6):
        states = [torch.full((3, 1, 4, 6 + spare, 5), torch.nan) for _ in range(2)]
        for state, before in zip(states, (keys, values), strict=True):
            state[:, 0, :, :4] = before[:, :, :4]
        seen = OpenCache(*states, one(1), 6).update(new_keys, new_values)
        for ours, theirs in zip(seen, expected, strict=True):
            assert torch.equal(ours, theirs[:, :, :6])


def test_one_token_is_in_the_ring_before_the_attention_looks() -> None:
    keys, values = states(3, 5)
    before = keys.clone()
    new = torch.randn(2, 1, 4)
    seen, _ = RowCache(keys, values, one(2), one(3)).update(new, new)
    before[2, :, 3:4] = new
    assert torch.equal(keys, before)
    assert torch.equal(seen, before[2:])


def test_several_tokens_see_the_ring_as_it_was_and_then_overwrite_it() -> None:
    keys, values = states(2, 5)
    old, new = keys.clone(), torch.randn(2, 3, 4)
    new[:, 2] = torch.tensor([float("nan"), float("inf"), float("-inf"), 7.0])
    # positions 9 and 10 fall on rows 4 and 0; the third is padding
    place = ring_placement(5, one(9), one(2), padding_of(3, one(2)))
    seen, _ = RingCache(keys, values, one(0), place).update(new, new)
    new[:, 2] = 0  # what is no token can be hidden by a mask
    assert torch.equal(seen, torch.cat((old[0], new), 1)[None])
    assert torch.equal(keys[1], old[1])
    assert torch.equal(keys[0, :, [4, 0]], new[:, :2])
    assert torch.equal(keys[0, :, 1:4], old[0, :, 1:4])


def test_a_packed_layer_writes_its_own_rows_and_has_its_keys_before_its_values() -> None:
    state, new = torch.randn(6, 2, 5, 4), torch.randn(2, 2, 1, 4)
    expected = state.clone()
    expected[2:4, :, 3:4] = new
    keys, values = RowCache(state, None, one(2), one(3)).update(new[0], new[1])
    assert torch.equal(state, expected)
    assert torch.equal(keys, expected[2:3])
    assert torch.equal(values, expected[3:4])


@pytest.mark.parametrize("queries", [1, 3])
@pytest.mark.parametrize("is_ring", [False, True])
@pytest.mark.parametrize("is_packed", [False, True])
def test_a_cache_that_the_host_keeps_shows_what_a_state_shows(queries: int, is_ring: bool, is_packed: bool) -> None:
    """It stays as it was, and gives its new rows and what the state would be. The last token is padding."""
    state, new = torch.randn(6, 2, 5, 4), torch.randn(2, 2, queries, 4)
    given = (state.clone(), None if is_packed else state.flip(0).clone(), one(2))
    kept = [tensor.clone() for tensor in given[:2] if tensor is not None]
    padding = padding_of(queries, one(2)) if queries > 1 else None
    place = None if padding is None or not is_ring else ring_placement(5, one(9), one(2), padding)
    first = one(1) if place is None else None
    cache = FunctionalCache(*(None if each is None else each.clone() for each in given), first, padding, place)  # type: ignore[arg-type]
    known = RowCache(*given, one(1), padding) if place is None else RingCache(*given, place)
    assert all(torch.equal(*pair) for pair in zip(cache.update(*new), known.update(*new), strict=True))
    of_host = [cache.key_state, *([] if cache.value_state is None else [cache.value_state])]
    assert all(torch.equal(*pair) for pair in zip(of_host, kept, strict=True))
    real = new if padding is None else new.masked_fill(padding > 0, 0.0)
    assert torch.equal(torch.cat(cache.new), real)
    assert [each.shape[0] for each in cache.new] == ([2] if is_packed else [1, 1])
    left = given[0][2:4] if is_packed else torch.stack((given[0][2], given[1][2]))  # type: ignore[index]
    assert torch.equal(torch.cat(cache.read()), left)


def test_several_tokens_see_a_packed_ring_as_it_was() -> None:
    state, new = torch.randn(4, 2, 5, 4), torch.randn(2, 2, 3, 4)
    old = state.clone()
    place = ring_placement(5, one(9), one(2), padding_of(3, one(2)))
    keys, values = RingCache(state, None, one(2), place).update(new[0], new[1])
    new[:, :, 2] = 0
    assert torch.equal(torch.cat((keys, values)), torch.cat((old[2:], new), 2))
    assert torch.equal(state[:2], old[:2])
    assert torch.equal(state[2:, :, [4, 0]], new[:, :, :2])
    assert torch.equal(state[2:, :, 1:4], old[2:, :, 1:4])


def test_without_a_cache_what_is_given_is_what_is_seen() -> None:
    keys, values = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    cache = NoCache()
    for seen_keys, seen_values in (cache.update(keys, values), cache.read()):
        assert torch.equal(seen_keys, keys[None])
        assert torch.equal(seen_values, values[None])
