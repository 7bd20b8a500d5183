"""`export.mlp_scale` and `export.head_scale`: exact scales inside an MLP, and behind the norm of the head."""

from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES, Pair
from family_configs import save_tokenizer

from coreai_recipes.audit.auditing import audit_bundle
from coreai_recipes.audit.keeping import applied_text
from coreai_recipes.audit.prompts import Prompt
from coreai_recipes.bundle import build
from coreai_recipes.bundle.building import VerificationError
from coreai_recipes.checkpoint import open_checkpoint
from coreai_recipes.errors import UserError
from coreai_recipes.primitives.layer import Form
from coreai_recipes.recipe import load_recipe
from coreai_recipes.recipe.export_rules import mlp_scale_problems
from coreai_recipes.recipe.schema import Recipe

SMALL = {"functions": {"prefill": 8}, "context": 32}


@pytest.fixture(autouse=True)
def _on_small_tensors(small_tensors: None) -> None:
    pass


def changed(recipe: Recipe, **export: Any) -> Recipe:
    data = recipe.model_dump()
    data["export"] |= export
    return Recipe.model_validate(data)


@pytest.mark.parametrize("name", ["llama", "gemma2", "gemma3"])
def test_scales_inside_change_nothing(name: str) -> None:
    """A norm behind the MLP, down without one; a soft-cap of the logits."""
    pair = FAMILIES[name](**SMALL)
    ids = torch.randint(0, 131, (1, 24), generator=torch.Generator().manual_seed(4))
    form = Form(mlp_scale=2.0**-3, head_scale=2.0**-4)
    assert torch.equal(pair.decoder(form=form)(ids), pair.decoder()(ids))


def saved(pair: Pair, folder: Path) -> tuple[Recipe, Any]:
    pair.model.save_pretrained(folder)
    save_tokenizer(folder)
    return pair.recipe, open_checkpoint(folder)


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_an_mlp_beyond_float16_fails_with_the_scale_by_which_it_passes(name: str, tmp_path: Path) -> None:
    """No scale of the stream reaches what an MLP multiplies, and nothing could be set."""
    pair = FAMILIES[name](**SMALL)
    mlp: Any = pair.model.model.layers[1].mlp
    with torch.no_grad():
        mlp.gate_proj.weight.mul_(300), mlp.up_proj.weight.mul_(300)
        if name == "llama":
            mlp.down_proj.weight.mul_(1e-4)
    recipe, checkpoint = saved(pair, tmp_path / "checkpoint")
    with pytest.raises(VerificationError) as failed:
        build(recipe, checkpoint, tmp_path / "dist")
    (stage,) = [stage for stage in failed.value.report.stages if stage.name == "package_float16"]
    (remedy,) = stage.detail["remedies"]
    assert remedy["field"] == "export.mlp_scale"
    assert remedy["text"].endswith(" is the largest value inside an MLP, and float16 ends at 65,504)")
    bundle = build(changed(recipe, mlp_scale=remedy["value"]), checkpoint, tmp_path / "dist")
    assert bundle.report["passed"]
    plain = build(recipe, checkpoint, tmp_path / "plain", verified=False)
    audited = audit_bundle(plain, (Prompt("a", text="hello there"), Prompt("b", text="x", repeated=True)))
    assert audited.infinities
    assert audited.beyond() == []
    assert audited.scales["mlp_scale"] < 2**-2
    assert f"\n# export.mlp_scale: {audited.scales['mlp_scale']:g}, in place of 1: " in applied_text(audited)
    (tmp_path / "applied.yaml").write_text(applied_text(audited))
    assert load_recipe(tmp_path / "applied.yaml").export.mlp_scale == audited.scales["mlp_scale"]


def test_a_norm_of_the_head_beyond_float16_is_refused_with_the_scale_that_holds_it(tmp_path: Path) -> None:
    pair = FAMILIES["gemma3"](**SMALL)
    with torch.no_grad():
        pair.model.model.norm.weight[3] = 100_000
    recipe, checkpoint = saved(pair, tmp_path / "checkpoint")
    with pytest.raises(UserError) as refused:
        build(recipe, checkpoint, tmp_path / "dist")
    assert str(refused.value) == (
        "model.norm.weight holds 100001, and float16 ends at 65,504\n  export.head_scale: 0.5 would hold it"
    )


def test_where_no_scale_can_be_that_is_said() -> None:
    kinds = {"full": {"mlp": {"kind": "plain"}}}
    (problem,) = mlp_scale_problems({"model": {"kinds": kinds, "layers": [{"repeat": 1, "of": ["full"]}]}})
    assert problem.message == "the MLP of `full` is plain: only a gated MLP is linear in `up`"
    kinds = {"full": {"mlp": {"kind": "gated", "inner_norm": {"kind": "rms"}}}}
    (problem,) = mlp_scale_problems({"model": {"kinds": kinds, "layers": [{"repeat": 1, "of": ["full"]}]}})
    assert problem.message == "the norm inside the MLP of `full` would undo it before `down` does"
    with pytest.raises(ValueError, match=r"mlp_scale: 0\.3 is not a power of two"):
        changed(FAMILIES["llama"](**SMALL).recipe, mlp_scale=0.3)
    data = FAMILIES["llama"](**SMALL).recipe.model_dump()
    data["reference"], data["model"]["head"]["norm"], data["export"]["head_scale"] = None, "none", 0.5
    with pytest.raises(ValueError, match=r"head_scale: no norm before the head has weights that could absorb it"):
        Recipe.model_validate(data)
