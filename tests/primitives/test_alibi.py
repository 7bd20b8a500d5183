"""Slopes and distances against transformers' BLOOM, MPT and Falcon."""

import pytest
import torch
from figures import psnr
from torch import Tensor

from coreai_recipes.primitives import alibi
from coreai_recipes.recipe.schema import Alibi

PLAIN = Alibi()
FALCON = Alibi(scaled=True, rounding="bfloat16")
K = 600


def falcon(heads: int, length: int = K) -> Tensor:
    """(H, K), in bfloat16's bits."""
    from transformers.models.falcon.modeling_falcon import build_alibi_tensor

    return build_alibi_tensor(torch.ones(1, length, dtype=torch.int64), heads, torch.float32)[:, 0]


@pytest.mark.parametrize("heads", [1, 2, 3, 6, 8, 12, 16, 25, 40, 71, 112])
def test_slopes_are_those_of_bloom_and_of_mpt(heads: int) -> None:
    """The two are written differently, and are the same series."""
    from transformers.models.bloom.modeling_bloom import _get_alibi_slopes
    from transformers.models.mpt.modeling_mpt import build_mpt_alibi_tensor

    found = torch.tensor(alibi.slopes(PLAIN, heads))
    assert torch.allclose(found, _get_alibi_slopes(heads, torch.device("cpu")), rtol=1e-5)
    assert torch.allclose(found, -build_mpt_alibi_tensor(heads, 2)[:, 0, 0], rtol=1e-5)


@pytest.mark.parametrize("last", [6.0, 16.0])
def test_slopes_end_where_the_recipe_says(last: float) -> None:
    from transformers.models.mpt.modeling_mpt import build_mpt_alibi_tensor

    found = torch.tensor(alibi.slopes(Alibi(max=last), 6))
    assert torch.allclose(found, -build_mpt_alibi_tensor(6, 2, alibi_bias_max=last)[:, 0, 0], rtol=1e-5)


def test_the_bias_falls_from_the_query_on() -> None:
    """Softmax does not see what all keys of a query share: it is compared as the difference from the query's own."""
    keys, queries = torch.arange(12), torch.tensor([3, 11])
    found = alibi.bias(PLAIN, 6, 3, 1.0, keys, queries)
    assert found.shape == (3, 12, 2, 2)
    slopes = torch.tensor(alibi.slopes(PLAIN, 6)).view(3, 1, 2, 1)
    expected = slopes * (keys.view(1, -1, 1, 1) - queries.view(1, 1, 1, -1))
    assert torch.equal(found, expected.clamp(max=0))


@pytest.mark.parametrize("heads", [4, 6, 71])
def test_falcons_rounding_is_bfloat16s_bit_for_bit(heads: int) -> None:
    """At every position up to 4095: slopes, positions and their products, each rounded."""
    length = 4096
    rounded = alibi.round_to_bfloat16(
        alibi.round_to_bfloat16(torch.arange(length).float()) * torch.tensor(alibi.slopes(FALCON, heads))[:, None]
    )
    assert torch.equal(rounded, falcon(heads, length))


def test_falcons_distance_is_scaled_as_the_scores_are() -> None:
    found = alibi.bias(FALCON, 4, 4, 0.125, torch.arange(K), torch.tensor([K - 1]))[:, :, 0, 0]
    theirs = falcon(4)
    assert psnr((theirs - theirs[:, -1:]) * 0.125, found) >= 120


def test_near_keys_keep_their_bits_in_float16() -> None:
    """Why the distance and not the position is scaled: 2047 and 2048 times a slope are one number in float16."""
    keys, queries = torch.arange(4000, 4008), torch.tensor([4007])
    found = alibi.bias(PLAIN, 6, 6, 1.0, keys, queries).half()
    assert len(found[0, :, 0, 0].unique()) == 8
    assert len((keys * alibi.slopes(PLAIN, 6)[0]).half().unique()) < 8
