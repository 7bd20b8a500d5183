"""A recipe with adapters: built, proven against peft's own merge, and proven again with the same ones only."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from small_adapters import save_adapter, tiny_llama

Run = Callable[..., tuple[int, str, str]]
TINY = Path(__file__).parents[1] / "checkpoints/tiny-llama"


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of tiny-llama."""
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("adapters") / "style"
    model = AutoModelForCausalLM.from_pretrained(TINY, dtype="float32")
    save_adapter(model, folder, size=0.5, target_modules=["v_proj", "up_proj"])
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": str(TINY)}))
    return folder


def test_an_adapter_is_built_into_a_bundle_and_proven(run: Run, adapter: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "style.yaml"
    status, _, err = run("new", adapter, "-o", recipe)
    assert (status, err.splitlines()[0]) == (0, f"adapters: {adapter}, whose base is {TINY}")
    assert f'adapters:\n  - {{name: style, source: "{adapter}"}}\n' in recipe.read_text()
    # of the fragments that other tests have converted
    recipe.write_text(f"recipe: 1\nextends: tiny-llama\nname: style\nadapters: [{{name: style, source: {adapter}}}]\n")
    status, out, err = run("build", recipe, "--checkpoint", TINY, "--out", tmp_path)
    assert status == 0, err
    bundle = tmp_path / "style"
    manifest = json.loads((bundle / "manifest.json").read_text())
    (merged,) = manifest["checkpoint"]["adapters"]
    assert (merged["name"], merged["source"]) == ("style", "style")
    assert merged["sha256"].keys() == {"adapter_config.json", "adapter_model.safetensors"}
    assert str(adapter) not in (bundle / "recipe.yaml").read_text()
    report = json.loads((bundle / "report.json").read_text())
    torch_stage = next(stage for stage in report["stages"] if stage["name"] == "torch")
    assert torch_stage["passed"] is True
    assert torch_stage["detail"]["reference"]["adapters"] == "merged by peft"

    ask = ("verify", bundle, "--checkpoint", TINY, "--stage", "torch", "--json")
    status, out, _ = run(*ask, "--require", "torch")
    assert status == 1
    assert "built with the adapter style, which is not on the hub: pass it with --adapter style=SRC" in out
    assert run(*ask, "--adapter", f"style={adapter}")[0] == 0
    other = tmp_path / "other"
    shutil.copytree(adapter, other)
    config = json.loads((other / "adapter_config.json").read_text())
    (other / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": 3}))
    assert run(*ask, "--adapter", f"style={other}") == (
        2,
        "",
        f"adapter {other}: this is not the adapter style that style was built with: adapter_config.json\n",
    )
    text = tmp_path / "text.txt"
    text.write_text("In the beginning God created the heaven and the earth. " * 8)
    status, out, err = run("evaluate", bundle, text, "--checkpoint", TINY, "--adapter", f"style={adapter}", "--json")
    assert (status, json.loads(out)["why_not_compared"]) == (0, None), err
    assert json.loads(out)["all"]["kl"]["mean"] < 1e-3
    assert run(*ask, "--adapter", f"x={other}")[2] == "--adapter x: style has no such adapter: it has style\n"
    assert run(*ask, "--adapter", "x")[2] == "--adapter x: not NAME=SRC, as in style=adapters/style\n"


def test_an_adapter_that_is_left_out_fails_the_stage(adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The proof sees an adapter that our side does not merge: peft's side has it."""
    from coreai_recipes import load_recipe, verify
    from coreai_recipes.checkpoint.adapted import AdaptedCheckpoint
    from coreai_recipes.recipe.schema import Adapter

    recipe = load_recipe("tiny-llama")
    recipe = recipe.model_copy(update={"adapters": [Adapter(name="style", source=str(adapter))]})
    assert verify(recipe, TINY, stages=["torch"]).passed
    monkeypatch.setattr(AdaptedCheckpoint, "blocks", lambda self, name, rows=None: self.base.blocks(name, rows))
    (stage,) = verify(recipe, TINY, stages=["torch"]).stages
    assert stage.passed is False


def test_validate_holds_an_adapter_to_the_checkpoint(run: Run, adapter: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(f"recipe: 1\nextends: tiny-llama\nname: r\nadapters: [{{name: a, source: {adapter}}}]\n")
    assert run("validate", recipe, "--checkpoint", TINY)[0] == 0
    (adapter_of_another := tmp_path / "other").mkdir()
    save_adapter(tiny_llama(), adapter_of_another)
    recipe.write_text(recipe.read_text().replace(str(adapter), str(adapter_of_another)))
    status, _, err = run("validate", recipe, "--checkpoint", TINY)
    assert status == 2
    said = "model.layers.0.mlp.down_proj: it is for a matrix (24, 40), and its base has (96, 176)"
    others = "and 3 others fit no better: this is an adapter of another model"
    assert err == f"adapter {adapter_of_another}: {said}, {others}\n"


def test_an_adapter_whose_base_is_not_here_says_so(run: Run, adapter: Path, tmp_path: Path) -> None:
    shutil.copytree(adapter, moved := tmp_path / "moved")
    config = json.loads((moved / "adapter_config.json").read_text())
    (moved / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "/gone/base"}))
    assert run("new", moved)[2] == (
        f"adapter {moved}: its base, checkpoint /gone/base: no such folder or file; a hub id is ORG/NAME or "
        "ORG/NAME@REVISION\n  say in its adapter_config.json (base_model_name_or_path) where its base is\n"
    )


def test_names_of_adapters_differ(run: Run, tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        "recipe: 1\nextends: tiny-llama\nname: two\nadapters:\n  - {name: a, source: x}\n  - {name: a, source: y}\n"
    )
    assert run("validate", recipe)[2] == f"{recipe}:6:12: adapters.1.name: a is the name of an earlier adapter too\n"
