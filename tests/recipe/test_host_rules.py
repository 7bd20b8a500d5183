"""What ANEMLL's host cannot load is refused by name, and its neighbour passes."""

from pathlib import Path

import pytest

from coreai_recipes.errors import RecipeError
from coreai_recipes.recipe import load_recipe

HOST = "export.host=anemll"
TWO_KINDS = """\
extends: tiny-llama
name: two-kinds
model:
  kinds:
    other: {like: full, attention: {num_heads: 4, num_kv_heads: %d}, rotary: {kind: none}}
  layers: [full, other]
"""
LEAVE = "leave out export.host"


def lines_of(name: str | Path, *overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        load_recipe(name, overrides)
    return str(caught.value).replace("\n  ", " | ").split("\n")


def test_sliding_layers_shared_caches_tables_drafts_and_scores_are_named() -> None:
    at = "--set export.host=anemll: export.host: anemll"
    assert lines_of("gemma4-tiny", HOST) == [
        f"{at} has a full cache for each layer, and `sliding` is sliding | {LEAVE}",
        f"{at} has a full cache for each layer, and `sliding_shared` is sliding | {LEAVE}",
        f"{at} has a full cache for each layer, and `full_shared` reads the cache of another kind | {LEAVE}",
        f"{at} hands in no rows of a per-layer table | {LEAVE}",
        f"{at} has no drafts | leave out export.host, or build without a draft",
        f"{at} calls infer and prefill alone | leave out export.functions.score or export.host",
    ]


def test_several_packages_and_a_table_of_the_hosts_are_refused() -> None:
    assert lines_of("tiny-llama", HOST, "export.chunks=2", "export.table=host") == [
        f"--set export.chunks=2: export.chunks: anemll loads one package | set it to 1, or {LEAVE}",
        f"--set export.table=host: export.table: anemll hands in no rows of a table | {LEAVE}",
    ]


def test_caches_of_two_shapes_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "two-kinds.yaml"
    path.write_text(TWO_KINDS % 4)
    assert lines_of(path, HOST) == [
        "--set export.host=anemll: export.host: anemll has one state, for caches of one shape: 2 KV heads of 32 in "
        f"`full`, 4 KV heads of 32 in `other` | {LEAVE}"
    ]
    path.write_text(TWO_KINDS % 2)
    assert load_recipe(path, [HOST]).export.host == "anemll"


def test_a_mask_has_a_column_for_each_row_of_the_state() -> None:
    assert lines_of("tiny-llama", HOST, "export.context=250") == [
        "--set export.context=250: export.context: 250 is no multiple of 32: anemll has as many columns in its mask as "
        "rows in its state | the next is 256"
    ]


def test_alibi_and_a_prefill_of_one_are_refused() -> None:
    said = lines_of("tiny-llama", HOST, "model.kinds.full.attention.alibi={}", "export.functions.prefill=1")
    assert any("`full` has ALiBi, which its mask does not hold" in line for line in said)
    assert "--set export.functions.prefill=1: export.functions.prefill: anemll needs a prefill of 2 or more" in said
