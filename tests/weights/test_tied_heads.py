"""Whether the head is the table: the checkpoint's values decide, as in transformers, and every command says the same.

`recipe build` used to drop an lm_head.weight that differs from the table where config.json says that the two are tied,
and the reference was tied by hand, so every stage passed and the answers were other tokens.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from family_configs import unusual_config
from safetensors.torch import load_file, save_file
from small_models import small_model
from torch import Tensor

from coreai_recipes import CheckpointError, build, load_recipe, verify
from coreai_recipes.checkpoint import open_checkpoint
from coreai_recipes.checkpoint.base import Unread
from coreai_recipes.decoder.filling import settle_head
from coreai_recipes.planning.authoring import compare, new_recipe
from coreai_recipes.recipe.importing import load_family
from coreai_recipes.weights.tying import judge_head

TINY = Path(__file__).parents[1] / "checkpoints/tiny-llama"
TABLE, HEAD = "model.embed_tokens.weight", "lm_head.weight"
UNTIED = (
    "model.head.tied: false, for lm_head.weight is there and is not the table: transformers does not tie them either"
)
Run = Callable[..., tuple[int, str, str]]


def with_head(folder: Path, make: Callable[[Tensor], Tensor], name: str = HEAD, **config: Any) -> Path:
    """tiny-llama's checkpoint, whose config says tied, with a head that `make` makes of its table."""
    shutil.copytree(TINY, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors[name] = make(tensors[TABLE]).contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    said = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**said, **config}))
    return folder


def one_differs(table: Tensor) -> Tensor:
    """In the last value only, by the smallest step of float32."""
    head = table.float().clone()
    head[-1, -1] = torch.nextafter(head[-1, -1], torch.tensor(torch.inf))
    return head


def doubled(table: Tensor) -> Tensor:
    return table * 2


def copied(table: Tensor) -> Tensor:
    return table.clone()


def shortened(table: Tensor) -> Tensor:
    return table[:-1].clone()


def in_float32(table: Tensor) -> Tensor:
    return table.float()


@pytest.mark.parametrize(
    ("make", "found"),
    [
        (copied, "copy"),
        (in_float32, "copy"),
        (doubled, "own"),
        (one_differs, "own"),
        (lambda table: table[:-1].clone(), "own"),
    ],
    ids=["the same", "the same in float32", "twice", "one value", "fewer rows"],
)
def test_values_are_compared_whatever_their_dtypes(
    tmp_path: Path, make: Callable[[Tensor], Tensor], found: str
) -> None:
    assert judge_head(open_checkpoint(with_head(tmp_path / "m", make)), "llama") == (found, HEAD)


def test_bare_numbers_are_compared_too(tmp_path: Path) -> None:
    """No model has them, and a file may."""
    checkpoint = with_head(tmp_path / "m", copied)
    tensors = {TABLE: torch.tensor(1.0), HEAD: torch.tensor(2.0)}
    save_file(tensors, checkpoint / "model.safetensors", metadata={"format": "pt"})
    assert judge_head(open_checkpoint(checkpoint), "llama") == ("own", HEAD)


def test_a_comparison_reads_blocks_and_stops_at_the_first_that_differs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = open_checkpoint(with_head(tmp_path / "m", doubled))
    monkeypatch.setattr(checkpoint, "_block_bytes", 7 * 96 * 2, raising=True)
    read: list[range | None] = []
    whole = checkpoint.read
    monkeypatch.setattr(checkpoint, "read", lambda name, rows=None: read.append(rows) or whole(name, rows))
    assert not checkpoint.are_equal(TABLE, HEAD)
    assert not checkpoint.are_equal(HEAD, TABLE)
    assert read == [range(7)], "one block, and once"


def greedy(bundle: Path, prompt: list[int], count: int) -> list[int]:
    from coreai_recipes.bundle import Bundle
    from coreai_recipes.generate import open_model

    opened = Bundle.open(bundle)
    session = open_model(opened.path, opened.manifest).session
    tokens: list[int] = []
    for _ in range(count):
        tokens.append(int(session.feed(prompt + tokens).argmax()))
    return tokens


@pytest.mark.parametrize("tied", [True, False], ids=["a recipe that ties", "a recipe that does not"])
def test_a_head_that_is_not_the_table_is_built_and_answers_as_transformers(
    run: Run, tmp_path: Path, tied: bool
) -> None:
    from transformers import AutoModelForCausalLM

    checkpoint = with_head(tmp_path / "m", doubled)
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(f"extends: tiny-llama\nname: mine\nmodel: {{head: {{tied: {json.dumps(tied)}}}}}\n")
    status, out, _ = run("build", recipe, "--checkpoint", checkpoint, "--out", tmp_path / "dist")
    assert status == 0, out
    assert (UNTIED in out) is tied
    assert load_recipe(tmp_path / "dist/mine/recipe.yaml").model.head.tied is False
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    theirs = model.generate(torch.tensor([[1, 50, 60, 70]]), max_new_tokens=8, do_sample=False)[0, 4:].tolist()
    assert greedy(tmp_path / "dist/mine", [1, 50, 60, 70], 8) == theirs


def test_a_copy_of_the_table_stays_tied_and_nothing_is_said(run: Run, tmp_path: Path) -> None:
    checkpoint = with_head(tmp_path / "m", in_float32)
    status, out, _ = run(
        "build", "tiny-llama", "--checkpoint", checkpoint, "--out", tmp_path / "dist", "--no-verify", "--json"
    )
    assert (status, json.loads(out)["notes"]) == (0, [])
    assert load_recipe(tmp_path / "dist/tiny-llama/recipe.yaml").model.head.tied is True


def test_a_build_as_json_has_the_note(run: Run, tmp_path: Path) -> None:
    checkpoint = with_head(tmp_path / "m", one_differs)
    _, out, _ = run(
        "build", "tiny-llama", "--checkpoint", checkpoint, "--out", tmp_path / "dist", "--no-verify", "--json"
    )
    assert json.loads(out)["notes"] == [UNTIED]


def test_new_validate_and_diff_say_the_same(run: Run, tmp_path: Path) -> None:
    checkpoint = with_head(tmp_path / "m", doubled)
    made = new_recipe(checkpoint)
    assert made.recipe.model.head.tied is False
    assert "head: {tied: false}" in made.text
    assert UNTIED in made.decisions
    status, out, err = run("validate", "tiny-llama", "--checkpoint", checkpoint)
    assert (status, out, err) == (0, f"tiny-llama: valid\ntiny-llama: {UNTIED}\n", "")
    _, out, _ = run("validate", "tiny-llama", "--checkpoint", checkpoint, "--json")
    assert json.loads(out)["recipes"][0]["notes"] == [UNTIED]
    status, out, err = run("diff", "tiny-llama", checkpoint)
    assert (status, "model.head.tied" in out, err) == (1, True, f"{checkpoint}: {UNTIED}\n")
    assert compare("tiny-llama", str(TINY)) == []


def test_a_table_that_is_stored_as_the_head_alone_is_read_from_there(tmp_path: Path) -> None:
    """safetensors keeps one of two tensors that share their memory, whichever name comes first."""
    checkpoint = with_head(tmp_path / "m", copied)
    tensors = load_file(checkpoint / "model.safetensors")
    del tensors[TABLE]
    save_file(tensors, checkpoint / "model.safetensors", metadata={"format": "pt"})
    report = verify("tiny-llama", checkpoint, stages=["torch"])
    assert report.passed, report.to_json()


def test_a_recipe_without_a_tie_still_needs_a_head(tmp_path: Path) -> None:
    recipe = load_recipe("tiny-llama", ["model.head.tied=false"])
    with pytest.raises(CheckpointError) as refused:
        build(recipe, TINY, tmp_path)
    assert refused.value.problems == (
        f"checkpoint {TINY}: lm_head.weight is missing: the recipe needs it as (512, 96)",
    )


def test_a_tied_recipe_of_a_head_that_is_not_the_table_fails_at_the_logits(tmp_path: Path) -> None:
    checkpoint = with_head(tmp_path / "m", one_differs)
    bigger = with_head(tmp_path / "bigger", lambda table: table + 0.01)
    assert verify("tiny-llama", checkpoint, stages=["torch"]).passed, "a step of float32 is no difference"
    (stage,) = verify("tiny-llama", bigger, stages=["torch"]).stages
    assert stage.passed is False
    assert stage.detail["first_below"]["tensor"] == "logits"


def save_tied(folder: Path, family: str) -> str:
    """A small random model of the family, tied; and the tensor that is its table."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = {**unusual_config(load_family(family)), "tie_word_embeddings": True}
    theirs = AutoConfig.for_model(family, **config)
    model = small_model(AutoModelForCausalLM.from_config, theirs)
    model.save_pretrained(folder)
    table = model.get_input_embeddings().weight
    return next(name for name, parameter in model.named_parameters() if parameter is table)


@pytest.mark.parametrize(
    ("family", "head"),
    [("gpt2", HEAD), ("gpt_neox", "embed_out.weight"), ("gpt_neox", HEAD), ("falcon", HEAD), ("opt", HEAD)],
)
def test_every_family_has_its_head(tmp_path: Path, family: str, head: str) -> None:
    """By the name that files of the family have for it, and by that inside transformers."""
    table = save_tied(tmp_path, family)
    tied = new_recipe(tmp_path).recipe
    assert tied.model.head.tied is True
    tensors = load_file(tmp_path / "model.safetensors")
    tensors[head] = tensors[table].flip(0).contiguous()
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    untied = new_recipe(tmp_path).recipe
    assert untied.model.head.tied is False
    (stage,) = verify(untied, tmp_path, stages=["torch"]).stages
    assert stage.passed, stage.detail
    (stage,) = verify(tied, tmp_path, stages=["torch"]).stages
    assert stage.detail["first_below"]["tensor"] == "logits"


@pytest.mark.parametrize("whole", ["model.language_model.", "language_model.model."])
def test_a_wrapper_has_its_head_inside_or_outside(tmp_path: Path, whole: str) -> None:
    save_tied(tmp_path, "gemma3_text")
    text = json.loads((tmp_path / "config.json").read_text())
    del text["tie_word_embeddings"]
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gemma3", "text_config": text}))
    tensors = load_file(tmp_path / "model.safetensors")
    tensors = {name.replace("model.", whole, 1): tensor for name, tensor in tensors.items()}
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert new_recipe(tmp_path).recipe.model.head.tied is True
    head = HEAD if whole.startswith("model.") else f"language_model.{HEAD}"
    tensors[head] = tensors[f"{whole}embed_tokens.weight"].flip(0).contiguous()
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    untied = new_recipe(tmp_path).recipe
    assert untied.model.head.tied is False
    (stage,) = verify(untied, tmp_path, stages=["torch"]).stages
    assert stage.passed, stage.detail
    assert stage.detail["reference"]["config"] == "config.json, the text part of gemma3"


@pytest.mark.parametrize(
    ("whole", "text", "tied"),
    [
        ({}, {}, True),
        ({"tie_word_embeddings": False}, {}, False),
        ({"tie_word_embeddings": True}, {}, True),
        ({"tie_word_embeddings": False}, {"tie_word_embeddings": True}, False),
        ({}, {"tie_word_embeddings": False}, False),
    ],
)
def test_a_wrappers_word_goes_before_that_of_its_text_part(
    whole: dict[str, Any], text: dict[str, Any], tied: bool
) -> None:
    from coreai_recipes.recipe.importing.assembling import recipe_from_config

    part = {**unusual_config(load_family("gemma3_text")), "tie_word_embeddings": None} | text
    part = {name: value for name, value in part.items() if value is not None}
    recipe = recipe_from_config({"model_type": "gemma3", "text_config": part, **whole}, "small").recipe
    assert recipe.model.head.tied is tied


def test_headers_alone_leave_it_to_the_build(tmp_path: Path) -> None:
    class Headers(Unread):
        held = "only the headers are here"

        def __init__(self, folder: Path) -> None:
            known = open_checkpoint(folder)
            self.source, self.path, self.tensors, self.config = "m", folder, known.tensors, known.config

        def eos_token_ids(self) -> list[int]:
            return []

    recipe = load_recipe("tiny-llama")
    assert settle_head(recipe, Headers(with_head(tmp_path / "m", doubled))) == (
        recipe,
        "model.head.tied: true, and lm_head.weight is there beside tie_word_embeddings: true: headers do not say "
        "whether they are equal, `recipe build` compares their values and decides",
    )
    assert settle_head(recipe, Headers(TINY)) == (recipe, None)
