"""`recipe new`, `families` and `diff`: from a checkpoint's config.json and headers, never a traceback."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from family_configs import DRAFT_TARGET as TARGET
from family_configs import all_configs, assistant

from coreai_recipes import build_decoder, load_recipe
from coreai_recipes.decoder.draft import Draft
from coreai_recipes.decoder.filling import checkpoint_shapes
from coreai_recipes.errors import CheckpointError, UserError
from coreai_recipes.planning.authoring import compare, family_rows, new_recipe
from coreai_recipes.recipe.importing.assembling import recipe_from_config, with_draft
from coreai_recipes.recipe.importing.comparing import compare_models
from coreai_recipes.recipe.importing.family import family_names
from coreai_recipes.recipe.importing.reversing import config_for
from coreai_recipes.recipe.importing.writing import liken, write_recipe
from coreai_recipes.recipe.source import built_in_recipes
from coreai_recipes.weights.names import load_names

TINY = Path(__file__).parents[1] / "checkpoints/tiny-llama"
E2B = Path(__file__).parents[1] / "recipe/gemma4-e2b.yaml"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A copy of tiny-llama's checkpoint, to be broken."""
    return Path(shutil.copytree(TINY, tmp_path / "My Tiny_Llama!"))


def write_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_new_recipe_is_what_a_person_would_have_written(tmp_path: Path) -> None:
    new = new_recipe(TINY)
    assert new.text == (
        "# yaml-language-server: $schema=recipe.schema.json\n"
        "# Numbers: config.json of tiny-llama.\n"
        "# Llama, SmolLM2: RMS norm before each block, grouped queries, a rotary over whole heads.\n"
        "recipe: 1\n"
        "name: tiny-llama\n"
        "reference: {model_type: llama}\n"
        "model:\n"
        "  vocab_size: 512\n"
        "  hidden_size: 96\n"
        "  norm: {kind: rms, eps: 1.0e-05}\n"
        "  head: {tied: true}\n"
        "  kinds:\n"
        "    full:\n"
        "      attention: {kind: full, num_heads: 4, num_kv_heads: 2, head_dim: 32}\n"
        "      rotary: {kind: full, theta: 10000.0}\n"
        "      mlp: {kind: gated, activation: silu, intermediate_size: 176}\n"
        "  layers:\n"
        "    - {repeat: 4, of: [full]}\n"
        "weights: {names: llama}\n"
        "export: {context: 512, residual_scale: auto}\n"
    )
    path = tmp_path / "new.yaml"
    path.write_text(new.text)
    assert load_recipe(path) == new.recipe
    assert new.decisions == (
        "name: tiny-llama, after the checkpoint",
        "reference.checkpoint: left out, because a folder is only on this machine: pass --checkpoint SRC",
        "export.context: 512 positions of the 512 that it was trained for",
        "export.residual_scale: auto, what a verified build measures that float16 and the engine need",
        "everything else comes from config.json, or from transformers' defaults where config.json has none",
    )


def test_gemma_4_is_written_with_its_kinds_alike(tmp_path: Path) -> None:
    config = {
        "model_type": "gemma4_text",
        "hidden_size": 1536,
        "intermediate_size": 6144,
        "num_hidden_layers": 35,
        "num_key_value_heads": 1,
        "layer_types": (["sliding_attention"] * 4 + ["full_attention"]) * 7,
        "num_kv_shared_layers": 20,
        "use_double_wide_mlp": True,
        "final_logit_softcapping": 30.0,
    }
    recipe = recipe_from_config(config, "gemma4-e2b", "google/gemma-4-E2B-it").recipe
    assert compare_models(recipe.model, load_recipe(E2B, ["model.layer_scalar=true"]).model) == []
    text = write_recipe(recipe, ["Gemma"], {"context": "of many"})
    kinds = text[text.index("    full:\n") : text.index("weights:")]
    assert kinds == (
        "    full:\n"
        "      like: sliding\n"
        "      attention: {kind: full, head_dim: 512}\n"
        "      rotary: {kind: proportional, theta: 1000000.0, factor: 0.25}\n"
        "    sliding_shared:\n"
        "      like: sliding\n"
        "      attention: {shares_kv_with: sliding}\n"
        "      mlp: {intermediate_size: 12288}\n"
        "    full_shared: {like: full, attention: {shares_kv_with: full}, mlp: {intermediate_size: 12288}}\n"
        "  layers:\n"
        "    - {repeat: 3, of: [sliding, sliding, sliding, sliding, full]}\n"
        "    - {repeat: 4, of: [sliding_shared, sliding_shared, sliding_shared, sliding_shared, full_shared]}\n"
    )
    assert text.endswith("weights: {names: gemma4}\nexport: {context: 4096, residual_scale: auto}\n")
    path = tmp_path / "new.yaml"
    path.write_text(text)
    assert load_recipe(path) == recipe


def test_a_kind_is_like_another_only_where_that_is_shorter() -> None:
    plain = {"attention": {"kind": "full", "num_heads": 4}, "rotary": {"kind": "none"}}
    window = {"attention": {"kind": "sliding", "num_heads": 4, "window": 8}, "rotary": {"kind": "none"}}
    assert liken({"sliding": window, "full": plain}) == {
        "sliding": window,
        "full": {"like": "sliding", "attention": {"kind": "full"}},
    }
    capped = {"attention": {"kind": "full", "num_heads": 4, "softcap": 5.0}, "rotary": {"kind": "none"}}
    assert liken({"a": capped, "b": plain})["b"] == {"like": "a", "attention": {"softcap": None}}


def test_the_name_is_made_of_the_folder_s(checkpoint: Path) -> None:
    assert new_recipe(checkpoint).recipe.name == "my-tiny_llama"


def test_the_tensors_are_held_against_the_recipe(checkpoint: Path) -> None:
    write_config(checkpoint, intermediate_size=160)
    with pytest.raises(CheckpointError) as caught:
        new_recipe(checkpoint)
    assert caught.value.problems[0] == (
        f"checkpoint {checkpoint}: model.layers.0.mlp.down_proj.weight is (96, 176), "
        "but the recipe's kind `full` needs (96, 160)"
    )


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "is not JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
        ("[" * 10_000 + "]" * 10_000, None),
        ("[1]", "is not a JSON object"),
        ('{"hidden_size": ' + "9" * 5000 + "}", None),
    ],
)
def test_a_config_that_is_no_json_object_is_one_sentence(checkpoint: Path, content: str, reason: str | None) -> None:
    (checkpoint / "config.json").write_text(content)
    with pytest.raises(CheckpointError) as caught:
        new_recipe(checkpoint)
    (problem,) = caught.value.problems
    assert problem.startswith(f"checkpoint {checkpoint}: config.json is not ")
    assert reason is None or problem == f"checkpoint {checkpoint}: config.json {reason}"


def test_a_config_of_200_megabytes_is_not_read(checkpoint: Path) -> None:
    with (checkpoint / "config.json").open("r+b") as file:
        file.truncate(200 << 20)
    with pytest.raises(CheckpointError) as caught:
        new_recipe(checkpoint)
    assert list(caught.value.problems) == [f"checkpoint {checkpoint}: config.json is larger than 4 MiB"]


def test_custom_code_is_data_and_another_name_is_offered(checkpoint: Path) -> None:
    write_config(checkpoint, model_type="tiny", auto_map={"AutoModelForCausalLM": "evil.Model"})
    (checkpoint / "evil.py").write_text("raise SystemExit('run')")
    with pytest.raises(CheckpointError) as caught:
        new_recipe(checkpoint)
    assert list(caught.value.problems) == [
        "config.json: model_type: tiny: unknown, but architectures says LlamaForCausalLM\n"
        "  to read it as that family's, add `--as llama`"
    ]
    assert new_recipe(checkpoint, "llama").recipe.model == new_recipe(TINY).recipe.model


def test_recipes_are_compared_field_by_field(checkpoint: Path) -> None:
    assert compare("tiny-llama", str(TINY)) == []
    write_config(checkpoint, rope_theta=500.0, rope_parameters=None)
    found = compare("tiny-llama", str(checkpoint))
    assert {difference.where: (difference.one, difference.other) for difference in found} == {
        "layers 0 to 3: rotary.theta": (10000.0, 500.0)
    }
    smaller = {difference.where for difference in compare("qwen3-0.6b", "qwen3-4b")}
    assert smaller == {
        "model.hidden_size",
        "model.layers",
        "layers 0 to 27: attention.num_heads",
        "layers 0 to 27: mlp.intermediate_size",
    }


def test_every_family_is_listed_with_its_recipes() -> None:
    rows = {row["family"]: row for row in family_rows()}
    assert rows.keys() == set(family_names())
    assert rows["qwen3"]["recipes"] == ["qwen3-0.6b", "qwen3-1.7b", "qwen3-4b"]


def recipe(*arguments: object) -> tuple[int, str, str]:
    starter = [sys.executable, "-c", "from coreai_recipes.cli import main; main()"]
    done = subprocess.run([*starter, *map(str, arguments)], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


def test_the_commands_print_write_and_end_as_they_should(tmp_path: Path, checkpoint: Path) -> None:
    out = tmp_path / "made.yaml"
    assert recipe("new", TINY, "-o", out)[:2] == (0, "")
    assert load_recipe(out) == new_recipe(TINY).recipe
    assert recipe("new", TINY, "-o", out) == (2, "", f"{out}: already exists; choose another name with -o\n")
    assert recipe("new", TINY)[1] == out.read_text()
    assert recipe("diff", "tiny-llama", TINY) == (0, "the same model\n", "")
    status, printed, _ = recipe("diff", "qwen3-0.6b", "qwen3-4b", "--json")
    assert (status, json.loads(printed)[0]) == (
        1,
        {"field": "hidden_size", "layers": [], "a": 1024, "b": 2560},
    )
    write_config(checkpoint, kv_lora_rank=8)
    assert recipe("new", checkpoint) == (
        2,
        "",
        "config.json: kv_lora_rank: not understood; this model needs a mechanism that recipes do not have\n",
    )


def save_zeros(folder: Path, config: dict[str, Any], module: Any, names: str) -> Path:
    """A checkpoint of the shapes that `module` needs, under a family's names."""
    import torch
    from safetensors.torch import save_file

    table = load_names(names)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    found = {table.find(name, table.prefixes[0]): shape for name, shape in checkpoint_shapes(module).items()}
    save_file(
        {source.tensor: torch.zeros(shape) for source, shape in found.items() if source}, folder / "model.safetensors"
    )
    return folder


def test_a_draft_goes_into_the_recipe_of_its_target(tmp_path: Path) -> None:
    recipe = with_draft(recipe_from_config(TARGET, "target").recipe, assistant())
    target = save_zeros(tmp_path / "target", TARGET, build_decoder(recipe), "gemma4")
    draft = save_zeros(tmp_path / "draft", assistant(), Draft.build(recipe), "gemma4_assistant")
    new = new_recipe(target, draft=draft)
    assert new.recipe == recipe
    path = tmp_path / "new.yaml"
    path.write_text(new.text)
    assert load_recipe(path) == recipe
    assert new.recipe.export.functions.score == 5
    assert "export.functions.score: 5, for the last token and the drafted ones" in new.decisions
    write_config(draft, backbone_hidden_size=48)
    with pytest.raises(CheckpointError) as caught:
        new_recipe(target, draft=draft)
    assert list(caught.value.problems) == ["config.json: backbone_hidden_size: 48, and the target's hidden_size is 32"]


def test_nothing_is_written_where_nothing_can_be(tmp_path: Path) -> None:
    from coreai_recipes.planning.authoring import write_new

    with pytest.raises(UserError, match="no such file or directory"):
        write_new(tmp_path / "nowhere/made.yaml", new_recipe(TINY))


@pytest.mark.parametrize("leaf", ["", "config.json"])
def test_config_json_alone_is_enough_and_its_tensors_are_said_to_be_unchecked(tmp_path: Path, leaf: str) -> None:
    config = {
        "model_type": "qwen3",
        "num_hidden_layers": 3,
        "hidden_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    made = new_recipe(tmp_path / leaf)
    assert made.recipe.model.hidden_size == 64
    assert made.decisions[-1] == f"its tensors were not checked: {tmp_path} holds config.json and no weights"


def test_an_unknown_config_that_says_nothing_is_not_called_a_llama(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "unheard"}')
    with pytest.raises(CheckpointError, match=r"^config\.json: model_type: unheard: transformers has no such model$"):
        new_recipe(tmp_path)


SMALL = {"tiny-llama", "gemma4-tiny"}  # made for tests and examples, whose streams are small


@pytest.mark.parametrize("name", sorted(built_in_recipes().keys() - SMALL))
def test_a_new_recipe_says_of_its_export_what_the_built_in_ones_of_its_family_do(name: str) -> None:
    """Gemma 3 270M overflowed in float16 as `recipe new` wrote it. The scale a build measures; where weights were at
    hand the built-in recipe has the number."""
    built_in = load_recipe(name)
    config = {**config_for(built_in), "max_position_embeddings": 1 << 17}
    made = recipe_from_config(config, name).recipe
    assert made.export.residual_scale == "auto"
    assert built_in.export.residual_scale == (0.25 if name == "smollm2-135m" else "auto")
    assert made.export == built_in.export.model_copy(update={"residual_scale": "auto"})


def test_a_new_recipe_of_a_stream_that_cannot_be_scaled_asks_for_nothing() -> None:
    """OPT 350M's blocks read the stream without a norm."""
    made = recipe_from_config(all_configs()["opt-350m"], "opt").recipe
    assert made.export.residual_scale == 1.0


def test_what_is_left_out_of_a_config_is_said_by_new_diff_and_validate(checkpoint: Path, tmp_path: Path) -> None:
    write_config(checkpoint, internal_version="7.2", rope_scaling=None)
    note = 'internal_version: "7.2": left out, no model in transformers has this field'
    assert note in new_recipe(checkpoint).decisions
    heard: list[str] = []
    assert compare("tiny-llama", str(checkpoint), heard.append) == []
    assert heard == [f"{checkpoint}: {note}"]
    assert recipe("validate", "tiny-llama", "--checkpoint", checkpoint)[1] == f"tiny-llama: valid\ntiny-llama: {note}\n"
