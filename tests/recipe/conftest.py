"""A small recipe to spoil, and what loading a text answers."""

from collections.abc import Callable

import pytest

from coreai_recipes.errors import RecipeError
from coreai_recipes.recipe import Resolved, load_resolved

SMALL = """\
recipe: 1
name: small
reference: {model_type: llama}
model:
  vocab_size: 64
  hidden_size: 32
  norm: {kind: rms, eps: 1e-5}
  head: {tied: true}
  kinds:
    full:
      attention: {kind: full, num_heads: 4, num_kv_heads: 2, head_dim: 8}
      rotary: {kind: full, theta: 10000}
      mlp: {kind: gated, activation: silu, intermediate_size: 48}
  layers: [full, {repeat: 3, of: [full]}]
weights: {names: llama}
export:
  context: 64
  functions: {prefill: 16}
"""


@pytest.fixture
def small() -> str:
    """A valid recipe of 18 lines."""
    return SMALL


@pytest.fixture
def load(tmp_path, monkeypatch) -> Callable[..., Resolved]:
    """`load(text, *overrides, **files)`: r.yaml with the other files (by stem) beside it, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def load(text: str | bytes, *overrides: str, **files: str) -> Resolved:
        content = text.encode() if isinstance(text, str) else text
        (tmp_path / "r.yaml").write_bytes(content)
        for stem, other in files.items():
            (tmp_path / f"{stem}.yaml").write_text(other)
        return load_resolved("r.yaml", overrides)

    return load


@pytest.fixture
def refusal(load) -> Callable[..., list[str]]:
    """The problems of a text that must not load."""

    def refusal(text: str | bytes, *overrides: str, **files: str) -> list[str]:
        with pytest.raises(RecipeError) as caught:
            load(text, *overrides, **files)
        return list(caught.value.problems)

    return refusal
