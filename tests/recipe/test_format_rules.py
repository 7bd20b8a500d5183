"""What a recipe says of its package that its format cannot have."""

from collections.abc import Callable

COREAI = ("export.format=coreai",)


def test_a_rotary_operation_over_whole_heads_needs_the_fold(small: str, refusal: Callable[..., list[str]]) -> None:
    composite = (*COREAI, "export.rotary_op=composite")
    assert refusal(small, *composite, "export.fold=false") == [
        "--set export.rotary_op=composite: export.rotary_op: composite turns heads whose dimensions are permuted, and "
        "export.fold is false\n  set fold to true, or rotary_op to plain",
    ]


def test_rotaries_are_plain_unless_a_recipe_asks_for_the_operation(small: str, load: Callable[..., object]) -> None:
    folds = {
        said: load(small, *said).recipe.export.rotary_fold  # type: ignore[attr-defined]
        for said in ((), COREAI, (*COREAI, "export.rotary_op=composite"), ("export.fold=false",))
    }
    assert [*folds.values()] == ["contiguous", "contiguous", "whole_head", None]


def test_core_mls_format_has_no_rotary_operation(small: str, refusal: Callable[..., list[str]]) -> None:
    (problem, *_) = refusal(small, "export.rotary_op=composite")
    assert problem.startswith("--set export.rotary_op=composite: export.rotary_op: ")


def test_a_model_is_one_aimodel(small: str, refusal: Callable[..., list[str]]) -> None:
    assert refusal(small, *COREAI, "export.chunks=2") == [
        "--set export.chunks=2: export.chunks: chunks keep below what a phone's Core ML loads, and export.format is "
        "coreai, which has no such limit known\n  leave out export.chunks",
    ]
