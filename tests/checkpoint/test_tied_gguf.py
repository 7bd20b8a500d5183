"""A GGUF file has no word for a tie: an output.weight that is a copy of the table is tied, any other is a head."""

from collections.abc import Callable
from pathlib import Path

from gguf_configs import CONFIGS
from gguf_files import random_model, write_gguf
from torch import Tensor

from coreai_recipes import build, verify
from coreai_recipes.planning.authoring import new_recipe

Run = Callable[..., tuple[int, str, str]]
UNTIED = (
    "model.head.tied: false, for lm_head.weight is there and is not the table: transformers does not tie them either"
)


def save_gguf(path: Path, make: Callable[[Tensor], Tensor]) -> Path:
    """A Llama whose output.weight is what `make` makes of its table."""
    architecture, config = CONFIGS["llama"]
    state = dict(random_model(config).state_dict())
    state["lm_head.weight"] = make(state["model.embed_tokens.weight"])
    return write_gguf(path, architecture, config, state)


def test_a_gguf_file_ties_what_is_a_copy_and_nothing_else(run: Run, tmp_path: Path) -> None:
    copy, own = (
        save_gguf(tmp_path / "copy.gguf", Tensor.clone),
        save_gguf(tmp_path / "own.gguf", lambda table: table * 2),
    )
    tied, untied = new_recipe(copy).recipe, new_recipe(own).recipe
    assert (tied.model.head.tied, untied.model.head.tied) == (True, False)
    assert verify(tied, copy, stages=["torch"]).passed
    assert verify(untied, own, stages=["torch"]).passed
    recipe = tmp_path / "tied.yaml"
    recipe.write_text(new_recipe(copy).text)
    status, out, _ = run("validate", recipe, "--checkpoint", own)
    assert (status, out) == (0, f"{recipe}: valid\n{recipe}: {UNTIED}\n")
    built = build(recipe, own, tmp_path / "dist", verified=False)
    assert UNTIED in built.notes
    assert not built.recipe.model.head.tied
