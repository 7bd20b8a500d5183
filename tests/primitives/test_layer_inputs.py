"""Layer inputs name their own ports, and a call says what its functions need."""

import pytest
import torch

from coreai_recipes.decoder.model import build_decoder
from coreai_recipes.primitives.cache import RingCache, RowCache
from coreai_recipes.primitives.layer_inputs import LayerInputs
from coreai_recipes.recipe import load_recipe


def test_inputs_are_their_ports_and_back() -> None:
    one, two = torch.ones(1), torch.zeros(1)
    given = LayerInputs(mask=one, temperature=two, first=one)
    assert given.ports() == {"mask": one, "temperature": two, "first": one}
    assert LayerInputs.of_ports({"x": two, "slot": two, **given.ports()}) == given
    assert [angle.numel() for angle in given.angles] == [0, 0]


def test_where_a_layer_writes_says_which_cache_it_has() -> None:
    state, slot, one = torch.zeros(2, 1, 4, 3), torch.zeros(1, dtype=torch.int32), torch.ones(1)
    assert isinstance(LayerInputs(one, first=slot).cache(state, None, slot), RowCache)
    assert isinstance(LayerInputs(one, put=one, kept=one, padding=one).cache(state, None, slot), RingCache)
    with pytest.raises(ValueError, match="write no cache"):
        LayerInputs(one).cache(state, None, slot)


def test_a_call_of_each_function_is_described_by_its_shape() -> None:
    decoder = build_decoder(load_recipe("gemma4-tiny"))
    calls = {name: decoder.call(name) for name in ("decode", "prefill", "score")}
    assert {name: (call.has_count, call.answered, call.picks, call.sharing) for name, call in calls.items()} == {
        "decode": (False, 1, False, "seen"),
        "prefill": (True, 1, True, "last"),
        "score": (True, calls["score"].tokens, False, "after"),
    }
    assert calls["prefill"].name == f"{calls['prefill'].tokens}_last"
    for call in calls.values():
        for kind in decoder.front.kinds:
            ports = call.ports(kind)
            assert {port for port in ports if call.is_float32(kind, port)} == {"cos", "sin"} & ports.keys()
