"""`recipe audit`: ranges over several prompts, what the bundle keeps of them, and the recipe that follows."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES
from family_configs import save_tokenizer

from coreai_recipes.audit.auditing import Audited, audit_bundle, audit_recipe
from coreai_recipes.audit.command import run_audits
from coreai_recipes.audit.keeping import save
from coreai_recipes.audit.prompts import BUILT_IN, Prompt, encode, read_prompts
from coreai_recipes.audit.ranges import Range
from coreai_recipes.bundle import Bundle, build
from coreai_recipes.checkpoint import Checkpoint, open_checkpoint
from coreai_recipes.commands import execute
from coreai_recipes.errors import BundleError, UserError
from coreai_recipes.evaluate.errors import EvaluationError
from coreai_recipes.manifest.audit import read_audit
from coreai_recipes.recipe import Recipe, load_recipe
from coreai_recipes.recipe.schema import MODEL
from coreai_recipes.verification.subject import Subject

PEAK = 24_000
PROMPTS = (Prompt("a", text="hello there"), Prompt("b", text="x", repeated=True))


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, Checkpoint]:
    """A Llama whose second MLP writes a stream of that size."""
    folder, pair = tmp_path_factory.mktemp("grown"), FAMILIES["llama"]()
    down: Any = pair.model.model.layers[1].mlp.down_proj.weight
    with torch.no_grad():
        down.mul_(1e4)
        pair.model.save_pretrained(folder / "before")
        down.mul_(PEAK / Subject(pair.recipe, {MODEL: open_checkpoint(folder / "before")}, None).measure_stream())
    pair.model.save_pretrained(folder / "after")
    save_tokenizer(folder / "after")
    return pair.recipe, open_checkpoint(folder / "after")


@pytest.fixture(autouse=True)
def _on_small_tensors(small_tensors: None) -> None:
    pass


@pytest.fixture(scope="module")
def built(grown: tuple[Recipe, Checkpoint], tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return build(*grown, tmp_path_factory.mktemp("built"), verified=False)


@pytest.fixture
def bundle(built: Bundle, tmp_path: Path) -> Bundle:
    """A copy, which may be changed."""
    return Bundle.open(shutil.copytree(built.path, tmp_path / "dist" / built.path.name))


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts.txt"
    path.write_text("hello there\n")
    return path


def test_an_audit_finds_the_largest_product_and_what_the_engine_makes_of_it(bundle: Bundle) -> None:
    found = audit_bundle(bundle, PROMPTS)
    worst, *_ = found.worst("product")
    assert (worst.weight, worst.range.operation) == ("layers_1_mlp_down_weight", "conv")
    assert PEAK / 2 < worst.range.largest < PEAK * 2
    assert worst.range.largest == pytest.approx(found.peaks.largest["product"])
    assert found.worst("divisor")[0].range.largest > 16_384
    assert found.nans
    assert "rsqrt" in found.infinities[0]
    assert found.scale == 0.25
    assert found.beyond() == []
    said = "\n".join(found.lines())
    assert "export.residual_scale: 0.25, in place of 1: of the stream, the largest product is " in said
    assert "engine: NaN in " in said


def test_a_habit_that_is_left_out_does_no_harm(bundle: Bundle) -> None:
    found = audit_bundle(bundle, PROMPTS, without=["div-sub"])
    assert (found.nans, found.infinities) == ((), ())
    assert "engine without div-sub: every value is finite" in found.lines()
    with pytest.raises(EvaluationError, match="there is no habit 'div': the habits are"):
        audit_bundle(bundle, PROMPTS, without=["div"])


def test_the_draft_of_a_bundle_is_audited_with_its_target(gemma4_tiny_bundle: Path) -> None:
    found = audit_bundle(Bundle.open(gemma4_tiny_bundle), PROMPTS[:1])
    assert any(place.function == "draft" and place.kind == "product" for place in found.places)
    assert found.to_audit().functions["draft"]
    assert found.beyond() == []


def run(*targets: object, **named: Any) -> list[Audited]:
    given = {"checkpoint": None, "prompts": None, "without": (), "apply_to": None, "saves": True, "progress": None}
    return run_audits([str(target) for target in targets], **{**given, **named})


def test_a_bundle_keeps_its_audit_sealed_and_the_recipe_that_follows_needs_nothing_more(
    bundle: Bundle, grown: tuple[Recipe, Checkpoint], texts: Path, tmp_path: Path
) -> None:
    before = {path: path.stat().st_ino for path in bundle.path.rglob("*") if path.is_file()}
    run(bundle.path, prompts=texts, apply_to=tmp_path / "applied.yaml")
    opened = Bundle.open(bundle.path)
    opened.check_files()
    assert "audit.json" in opened.manifest["files"]
    kept = read_audit(bundle.path)
    assert kept is not None
    assert kept.functions.keys() == bundle.manifest["packages"][0]["functions"].keys()
    largest = max(v.largest for v in kept.functions["prefill"].values() if v.operation == "conv")
    assert largest > PEAK / 2
    # nothing else was written again
    assert all(path.stat().st_ino == node for path, node in before.items() if path.name != "manifest.json")
    assert not [path for path in bundle.path.parent.iterdir() if path != bundle.path]
    text = (bundle.path / "audit.json").read_text()
    (bundle.path / "audit.json").write_text(text.replace('"positions": ', '"positions": 1'))
    with pytest.raises(BundleError, match=r"modified since it was built: audit\.json"):
        opened.check_files()
    (bundle.path / "audit.json").write_text(text)
    applied = load_recipe(tmp_path / "applied.yaml")
    assert applied.model == opened.recipe.model
    assert applied.export.residual_scale == 0.25
    for_device = applied.model_copy(update={"export": applied.export.model_copy(update={"device": "M4"})})
    again = audit_recipe(for_device, grown[1], PROMPTS[:1])
    assert again.recipe == for_device
    assert (again.nans, again.infinities, again.scale, again.peaks.scale) == ((), (), 0.25, 0.25)
    assert again.worst("product")[0].range.largest < 8192


def test_an_audited_bundle_is_audited_and_built_again(
    bundle: Bundle, grown: tuple[Recipe, Checkpoint], tmp_path: Path
) -> None:
    (bundle.path / "device").mkdir()
    (bundle.path / "device" / "mac.json").write_text("{}")
    for _ in range(2):
        audited = audit_bundle(Bundle.open(bundle.path), PROMPTS[:1])
        save(Bundle.open(bundle.path), audited)
        Bundle.open(bundle.path).check_files()
    assert (bundle.path / "device" / "mac.json").read_text() == "{}"
    (bundle.path / "device" / "mac.json").unlink()
    build(*grown, bundle.path.parent, verified=False)
    assert not (bundle.path / "audit.json").exists()


def test_words_that_cannot_be_meant_are_refused_before_anything_is_run(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "there.yaml").write_text("")
    with pytest.raises(UserError, match=r"there\.yaml: already exists; choose another name with --apply"):
        run(bundle.path, apply_to=tmp_path / "there.yaml")
    with pytest.raises(UserError, match="one audit writes one recipe, but 2 were requested"):
        run(bundle.path, bundle.path, apply_to=tmp_path / "new.yaml")
    with pytest.raises(UserError, match=r"--set applies to recipes, and this is already built$"):
        run(bundle.path, overrides=["export.context=32"])
    with pytest.raises(UserError, match=r"^--set export\.contxt=32: export\.contxt: unknown key"):
        run("tiny-llama", overrides=["export.contxt=32"])
    with pytest.raises(UserError, match=r"none\.txt: there is no such file"):
        run(bundle.path, prompts=tmp_path / "none.txt")


@pytest.mark.parametrize(
    ("name", "text", "problems"),
    [
        ("p.txt", "\n \n", ["must hold 1 to 1000 prompts: a line each, or in .json a list"]),
        ("p.json", "{", ["is not JSON: "]),
        ("p.json", '{"a": 1}', ["must hold 1 to 1000 prompts: a line each, or in .json a list"]),
        (
            "p.json",
            '["a", "", [{"role": "user"}], 3]',
            [f"prompt {number} is neither a text nor a conversation, " for number in (2, 3, 4)],
        ),
    ],
)
def test_a_file_of_prompts_that_is_none_is_refused(tmp_path: Path, name: str, text: str, problems: list[str]) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError) as caught:
        read_prompts(tmp_path / name)
    found = caught.value.problems
    assert len(found) == len(problems)
    assert all(said.startswith(f"{tmp_path / name}: {wanted}") for said, wanted in zip(found, problems, strict=True))


def test_prompts_are_lines_or_entries_of_a_list(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("one\n\ntwo words\n")
    assert [prompt.text for prompt in read_prompts(tmp_path / "p.txt")] == ["one", "two words"]
    (tmp_path / "p.json").write_text(json.dumps(["one", [{"role": "user", "content": "hi"}]]))
    one, other = read_prompts(tmp_path / "p.json")
    assert (one.text, other.messages) == ("one", ({"role": "user", "content": "hi"},))


def test_a_prompt_that_the_tokenizer_cannot_take_is_left_out_and_named() -> None:
    class Few:
        template_names: tuple[str, ...] = ()

        def encode(self, text: str) -> list[int]:
            return [ord(letter) for letter in text]

        def encode_chat(self, messages: Any, template: str | None = None) -> list[int]:
            raise UserError("no template")

    found, left_out = encode(BUILT_IN, Few(), 128, 32)
    assert {"a question", "a conversation", "European scripts", "Asian scripts"} <= set(left_out)
    assert all(len(each.token_ids) <= 32 for each in found)
    repeated = next(each for each in encode(BUILT_IN, Few(), 128, 512)[0] if each.name == "one token repeated")
    assert set(repeated.token_ids[4:]) == {ord("e")}


def test_subnormals_are_counted_with_what_they_are_worth() -> None:
    found = Range("mul")
    found.add(torch.tensor([1.0, 2.0**-15, -(2.0**-16), 0.0]))
    found.add(torch.tensor([2.0, 4.0, -8.0, 1.0]))
    assert (found.largest, found.least, found.subnormals, found.count) == (8.0, 2.0**-16, 2, 8)
    lost = (2.0**-30 + 2.0**-32) / 8
    assert found.flushed_psnr_db == pytest.approx(20 * math.log10(8) - 10 * math.log10(lost))
    assert math.isinf(Range("mul").flushed_psnr_db)


def test_the_command_prints_one_json_document(bundle: Bundle, texts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (bundle.path / "manifest.json").read_text()
    words = ["audit", bundle.path, "--prompts", texts, "--without", "div-sub", "--no-save", "--json"]
    assert execute([str(word) for word in words]) == 0
    (audited,) = json.loads(capsys.readouterr().out)["audits"]
    assert audited["prompts"] == ["prompt 1"]
    assert audited["engine"] == {"without": ["div-sub"], "nans": [], "infinities": []}
    assert audited["residual_scale"] == {"now": 1.0, "wanted": 0.25, "why_not": None}
    worst = audited["limits"]["product"]["worst"][0]
    assert (worst["layer"], worst["weight"], worst["operation"]) == (1, "layers_1_mlp_down_weight", "conv")
    assert (bundle.path / "manifest.json").read_text() == before
    assert not (bundle.path / "audit.json").exists()
