"""Which rows of a head each of its products takes."""

import pytest

from coreai_recipes.decoder.stacks import build_stacks
from coreai_recipes.recipe import load_recipe
from coreai_recipes.storage.integers import Integers
from coreai_recipes.storage.palette import Palette
from coreai_recipes.storage.parameters import head_blocks, head_pieces
from coreai_recipes.storage.row_blocks import pieces_together


def test_a_product_has_no_more_rows_than_the_engine_keeps_near() -> None:
    (qwen,) = build_stacks(load_recipe("qwen3-0.6b"))
    assert head_pieces(qwen) == (2,) * 5  # of 15,200 each
    assert [block.name for block in head_blocks(qwen)][:2] == [
        "embedding.weight[0:30400]",
        "embedding.weight[30400:60800]",
    ]
    (gemma,) = build_stacks(load_recipe("gemma4"))
    assert head_pieces(gemma) == (2,) * 8
    (tiny,) = build_stacks(load_recipe("tiny-llama"))
    assert head_blocks(tiny) == ()


@pytest.mark.parametrize(
    ("storage", "counts"),
    [
        (Integers(8), (2, 2, 2, 2, 2)),
        (Palette(4, 32), (2, 2, 2, 2, 2)),
        (Palette(3, 32), (4, 4, 2)),  # 16 bytes of entries for 32 rows, and 950 such groups end at half a line of 64
        (Palette(2, 32), (10,)),  # which not even four pieces mend
        (Palette(4, 15_200), (2, 2, 2, 2, 2)),
        (Palette(4, 76_000), (10,)),
    ],
    ids=str,
)
def test_a_block_begins_where_a_blob_may_and_cuts_no_group(
    storage: Integers | Palette, counts: tuple[int, ...]
) -> None:
    assert pieces_together(151_936, iter([((152_000, 64, 1, 1), storage)])) == counts
