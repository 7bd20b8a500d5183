"""The stage `tokenizer` sees a bundle whose prompt tokens are not transformers', and skips what it cannot judge."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from coreai_recipes.checkpoint.safetensors import SafetensorsCheckpoint
from coreai_recipes.planning.authoring import new_recipe
from coreai_recipes.recipe.schema import MODEL
from coreai_recipes.tokenizer.tokens import read_tokens
from coreai_recipes.verification.report import StageResult
from coreai_recipes.verification.run import run_stages
from coreai_recipes.verification.stages.tokenizer import run
from coreai_recipes.verification.subject import Subject

TINY = Path(__file__).parent.parent / "checkpoints" / "tiny-llama"
TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copytree(TINY, tmp_path / "checkpoint")
    edit(tmp_path / "checkpoint", chat_template=TEMPLATE)
    return tmp_path / "checkpoint"


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def stage(folder: Path, bundle: Path | None = None) -> StageResult:
    recipe = new_recipe(str(TINY)).recipe
    package = None if bundle is None else bundle / "model.mlpackage"
    return run(Subject(recipe, {MODEL: SafetensorsCheckpoint(folder)}, package))


def bundle_of(folder: Path) -> Path:
    target = folder.parent / "bundle"
    target.mkdir()
    SafetensorsCheckpoint(folder).write_tokenizer(target)
    return target


def test_equal_ids_pass_for_a_bundle_and_for_a_recipe_alone(folder: Path) -> None:
    for found in (stage(folder), stage(folder, bundle_of(folder))):
        assert found.passed is True
        assert found.detail == {"probes": {"text": 18, "special": 3, "ends": 1, "templates": 1, "chat": 10}}


def test_a_template_that_refuses_a_system_message_refuses_it_on_both_sides(folder: Path) -> None:
    refusing = "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}" + TEMPLATE
    edit(folder, chat_template=refusing)
    assert stage(folder, bundle_of(folder)).passed is True


@pytest.mark.parametrize(
    ("change", "probe"),
    [
        ({"special_tokens": {}}, "chat of 1 messages by default"),
        ({"chat_templates": {"default": "{{ messages }}"}}, "chat of 1 messages by default"),
        ({"chat_templates": {}}, "templates names"),
        ({"end_tokens": {0: "<|endoftext|>", 7: "&"}}, "ends of an answer"),
        ({"end_tokens": {}}, "ends of an answer"),
        ({"added_tokens": []}, "special 'a<|endoftext|>b'"),
        ({"overlay": {"pre_tokenizer": None}}, "text 'The capital of France is'"),
        ({"overlay": {"normalizer": {"type": "NFC"}}}, "text 'na\u00efve caf\u00e9 cafe\u0301"),
        ({"split_special_tokens": True}, "special 'a<|endoftext|>b'"),
    ],
)
def test_a_bundle_with_other_ids_fails_by_the_first_probe(folder: Path, change: dict[str, Any], probe: str) -> None:
    bundle = bundle_of(folder)
    replace(read_tokens(bundle), **change).write(bundle)
    found = stage(folder, bundle)
    assert found.passed is False
    assert found.detail["different"]["probe"].startswith(probe)
    assert found.detail["different"]["ours"] != found.detail["different"]["transformers"]


def test_a_bundle_from_before_tokens_json_fails_where_its_files_did_not_say_enough(folder: Path) -> None:
    config = {"chat_template": TEMPLATE, "tokenizer_class": "GPT2Tokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    bundle = bundle_of(folder)
    assert stage(folder, bundle).passed is True
    (bundle / "tokens.json").unlink()
    assert stage(folder, bundle).passed is False


def test_a_template_without_end_fails_and_transformers_is_not_asked(folder: Path) -> None:
    endless = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    edit(folder, chat_template=endless)
    found = stage(folder, bundle_of(folder))
    assert found.passed is False
    assert found.detail["endless"] == "its chat template was stopped: it takes more than 8,000,000 steps"


def test_custom_code_skips_the_stage_and_a_required_one_fails(folder: Path) -> None:
    edit(folder, tokenizer_class="OddTokenizer", auto_map={"AutoTokenizer": ["odd.OddTokenizer", None]})
    (folder / "config.json").write_text((folder / "config.json").read_text().replace('"llama"', '"odd"'))
    checkpoint = SafetensorsCheckpoint(folder)
    recipe = new_recipe(str(TINY)).recipe
    report = run_stages(recipe, checkpoint, None, stages=["tokenizer"])
    (found,) = report.stages
    assert found.passed is None
    reason = "transformers cannot load it: it needs the checkpoint's own code, which is never run"
    assert found.skipped == reason
    required = run_stages(recipe, checkpoint, None, stages=["tokenizer"], require=["tokenizer"])
    assert required.passed is False


def test_a_class_in_python_is_held_to_its_own_ids(folder: Path) -> None:
    """transformers has no tokenizer.json of it, so the checkpoint's own cannot be right."""
    edit(folder, tokenizer_class="ByT5Tokenizer")
    found = stage(folder, bundle_of(folder))
    assert found.passed is False
