"""What ANEMLL's host cannot load is refused by name, and its neighbour passes."""

from pathlib import Path
from typing import Any

import pytest

from coreai_recipes.errors import RecipeError
from coreai_recipes.recipe import load_recipe
from coreai_recipes.recipe.host_rules import host_problems

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


STATIC = ["export.format=coreai", "export.host=coreai-models"]


def test_what_apples_runner_cannot_call_is_named() -> None:
    at = "--set export.host=coreai-models: export.host: coreai-models"
    refused = lines_of("gemma4-tiny", *STATIC)
    assert refused[0] == (
        f"{at} has a full cache for each layer, and `sliding_shared` reads the cache of another kind | {LEAVE}"
    )
    assert f"{at} calls extend and prompt_opt alone | leave out export.functions.score or export.host" in refused
    assert lines_of("tiny-llama", *STATIC, "export.outputs=ids") == [
        "--set export.outputs=ids: export.outputs: coreai-models chooses a token itself, of logits | leave out "
        "export.outputs or export.host"
    ]


@pytest.mark.parametrize(
    ("context", "prefill", "why"),
    [
        (96, 64, "96 is no multiple of 64: coreai-models begins a prefill of 64 at its multiples"),
        (131072, 64, "coreai-models has positions of 16 bits, which hold 65,536, and not 131,072"),
        (32, 16, "coreai-models takes the largest size of a cache for its context, and 64 is more than 32"),
    ],
)
def test_the_contexts_that_apples_runner_can_call(context: int, prefill: int, why: str) -> None:
    sizes = f"export.context={context}", f"export.functions.prefill={prefill}"
    wide = "model.kinds.full.attention.head_dim=64"
    (line,) = lines_of("tiny-llama", *STATIC, *sizes, wide)
    assert line.partition(" | ")[0] == f"--set export.context={context}: export.context: {why}"
    assert load_recipe("tiny-llama", [*STATIC, "export.context=64", "export.functions.prefill=64", wide])


def test_apples_runner_has_a_window_hidden_in_a_full_cache() -> None:
    window = "model.kinds.full.attention={kind: sliding, window: 24}"
    assert load_recipe("tiny-llama", [*STATIC, window])
    (line,) = lines_of("tiny-llama", HOST, window)
    assert line.endswith(f"export.host: anemll has a full cache for each layer, and `full` is sliding | {LEAVE}")


def test_a_host_is_of_one_format() -> None:
    (line,) = lines_of("tiny-llama", "export.host=coreai-models")
    assert line.startswith("--set export.host=coreai-models: export.host: `coreai-models` is not `anemll` | ")


def test_a_state_space_beside_an_attention_is_refused() -> None:
    recipe = {"model": {"kinds": {"full": {"attention": {}, "state_space": {"kind": "mamba2"}}}, "layers": ["full"]}}
    for host in ("anemll", "coreai-models"):
        (problem,) = host_problems({**recipe, "export": {"host": host, "context": 64}})
        assert problem.message == f"{host} has a full cache for each layer, and `full` carries a state beside it"


DYNAMIC = ["export.format=coreai", "export.host=coreai-models-dynamic"]


def test_the_dynamic_form_takes_any_context_and_makes_its_masks_itself() -> None:
    assert load_recipe("tiny-llama", [*DYNAMIC, "export.context=250"]).export.context == 250
    said = {
        "model": {"kinds": {"full": {"attention": {"alibi": {}}}}, "layers": ["full"]},
        "export": {"format": "coreai", "context": 250},
    }
    assert [found.code for found in host_problems(hosted_by("coreai-models-dynamic", said))] == []
    assert [found.code for found in host_problems(hosted_by("coreai-models", said))] == [
        "host-layers",
        "host-context",
        "host-batches",
    ]


def hosted_by(host: str, said: dict[str, Any]) -> dict[str, Any]:
    return {**said, "export": {**said["export"], "host": host}}


def test_what_the_dynamic_form_cannot_hold_is_named() -> None:
    at = "--set export.host=coreai-models-dynamic: export.host: coreai-models-dynamic"
    assert f"{at} calls main alone | leave out export.functions.score or export.host" in lines_of(
        "tiny-llama", *DYNAMIC, "export.functions.score=4"
    )
    assert lines_of("tiny-llama", *DYNAMIC, "export.outputs=ids") == [
        "--set export.outputs=ids: export.outputs: coreai-models-dynamic chooses a token itself, of logits | leave out "
        "export.outputs or export.host"
    ]
    hybrid = {
        "model": {"kinds": {"linear": {"attention": {"kind": "gated_delta"}}}, "layers": ["linear"]},
        "export": {"format": "coreai", "host": "coreai-models-dynamic"},
    }
    assert [problem.message for problem in host_problems(hybrid)] == [
        "coreai-models-dynamic has a full cache for each layer, and `linear` is gated_delta"
    ]
