"""Sizes beyond every released model are refused with their place, alone and multiplied, before they take memory."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from coreai_recipes.recipe import sizes

Refusal = Callable[[str], list[str]]

NUMBERS = [2**31 - 1, 10**9, 10**12, 10**39]


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize(
    ("old", "field"),
    [
        ("vocab_size: 64", "vocab_size"),
        ("hidden_size: 32", "hidden_size"),
        ("num_heads: 4", "num_heads"),
        ("num_kv_heads: 2", "num_kv_heads"),
        ("head_dim: 8", "head_dim"),
        ("intermediate_size: 48", "intermediate_size"),
        ("repeat: 3", "repeat"),
        ("context: 64", "context"),
        ("prefill: 16", "prefill"),
    ],
)
def test_no_size_is_enormous(small: str, refusal: Refusal, old: str, field: str, number: int) -> None:
    assert old in small
    problems = refusal(small.replace(old, f"{field}: {number}"))
    assert any(f".{field}: {number}" in problem.partition("\n")[0] for problem in problems), problems


MIXTURE = """mlp:
        kind: moe
        num_experts: {experts}
        intermediate_size: {width}
        activation: silu
        router: {{score: softmax, top: 2}}
"""


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (
            {"num_heads: 4, num_kv_heads: 2, head_dim: 8": "num_heads: 1024, num_kv_heads: 2, head_dim: 512"},
            "model.kinds.full.attention.num_heads: 1024 heads of 512: 524,288 in all, more than 262,144",
        ),
        (
            {"vocab_size: 64": "vocab_size: 1048576", "hidden_size: 32": "hidden_size: 32768"},
            "model.vocab_size: 1048576 rows of 32768: 34,359,738,368 in all, more than 17,179,869,184",
        ),
        (
            {"context: 64": "context: 1048576", "prefill: 16": "prefill: 128"},
            "export.functions.prefill: a mask of 1048576 positions for each of 128 tokens of a call: "
            "134,217,728 in all, more than 67,108,864",
        ),
    ],
)
def test_no_product_of_sizes_is_enormous(
    small: str, refusal: Refusal, load: Callable[[str], Any], changes: dict[str, str], problem: str
) -> None:
    text = small
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    assert [line.partition(": ")[2] for line in refusal(text)] == [problem]


def test_the_experts_of_a_layer_are_counted_together(small: str, refusal: Refusal, load: Callable[[str], Any]) -> None:
    def text(experts: int, width: int) -> str:
        line = next(line for line in small.splitlines() if "mlp:" in line)
        return small.replace(line.strip(), MIXTURE.format(experts=experts, width=width).rstrip())

    load(text(512, 2048))
    (problem,) = refusal(text(4096, 1 << 18).replace("hidden_size: 32", "hidden_size: 65536"))
    assert problem.partition(": ")[2] == (
        "model.kinds.full.mlp.num_experts: 4096 experts of 3 x 262144 x 65536 weights: "
        "211,106,232,532,992 in all, more than 274,877,906,944"
    )


def test_the_bounds_are_beyond_every_released_model() -> None:
    """DeepSeek V3, Kimi K2, Llama 3.1 405B, Gemma 4 and Nemotron 4 340B, by their configs."""
    assert sizes.MAX_VOCABULARY >= 2 * 262144
    assert sizes.MAX_HIDDEN_SIZE >= 2 * 18432
    assert sizes.MAX_INTERMEDIATE_SIZE >= 2 * 73728
    assert sizes.MAX_WIDTH >= 2 * 128 * (128 + 64)
    assert sizes.MAX_LAYER >= 2 * 384 * 3 * 2048 * 7168
    assert 2 * max(262144 * 5376, 262144 * 42 * 256, 128256 * 16384) <= sizes.MAX_TABLE
    assert sizes.MAX_MASK >= sizes.MAX_CONTEXT * 64


@pytest.mark.parametrize("value", ["1e300", "1e-300", "1e31"])
@pytest.mark.parametrize("field", ["theta: 10000", "eps: 1e-5"])
def test_a_number_that_float32_cannot_hold_is_refused(small: str, refusal: Refusal, field: str, value: str) -> None:
    assert field in small
    (problem,) = refusal(small.replace(field, f"{field.partition(':')[0]}: {value}"))
    assert "is more than 1e+30" in problem or "is less than 1e-30" in problem


def test_a_refusal_takes_no_memory(small: str, tmp_path: Any) -> None:
    """`plan` used to make a table of frequencies for a head_dim of 2147483647 before anything looked at it."""
    (tmp_path / "r.yaml").write_text(small.replace("head_dim: 8", "head_dim: 2147483646"))
    program = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30)); "
        "from coreai_recipes.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "plan", str(tmp_path / "r.yaml")],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 2, done.stderr
    assert "head_dim: 2147483646 is more than 2048" in done.stderr
