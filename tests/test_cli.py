"""The command line as a user meets it: one clear sentence or list, the right status, no traceback, nothing lost."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
TINY = REPOSITORY / "tests/checkpoints/tiny-llama"
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A copy of tiny-llama's checkpoint, to be broken."""
    return Path(shutil.copytree(TINY, tmp_path / "checkpoint"))


def test_list_names_every_built_in_recipe(run: Run) -> None:
    status, out, _ = run("list")
    assert status == 0
    for path in (REPOSITORY / "recipes").glob("*.yaml"):
        assert path.stem in out


def test_list_as_json_is_one_document(run: Run) -> None:
    status, out, _ = run("list", "--json")
    assert status == 0
    assert {"name", "family", "parameters", "kinds", "rotary"} == set(json.loads(out)[0])


def test_a_shown_recipe_validates(run: Run, tmp_path: Path) -> None:
    _, out, _ = run("show", "smollm2-360m")
    (tmp_path / "shown.yaml").write_text(out)
    assert run("validate", tmp_path / "shown.yaml")[0] == 0


def test_every_built_in_recipe_validates(run: Run) -> None:
    names = sorted(path.stem for path in (REPOSITORY / "recipes").glob("*.yaml"))
    status, out, err = run("validate", *names)
    assert (status, err) == (0, "")
    assert out.splitlines() == [f"{name}: valid" for name in names]


def test_one_invalid_recipe_among_others_is_status_2(run: Run, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("recipe: 1\n")
    status, out, err = run("validate", "tiny-llama", tmp_path / "bad.yaml")
    assert status == 2
    assert "tiny-llama: valid" in out
    assert f"{tmp_path / 'bad.yaml'}:1:1: name: " in err


def test_an_unknown_recipe_says_where_to_look(run: Run) -> None:
    status, _, err = run("validate", "smolm2-135m")
    assert status == 2
    assert "did you mean `smollm2-135m`?" in err


def test_an_unknown_primitive_names_those_there_are(run: Run) -> None:
    status, _, err = run("plan", "tiny-llama", "--set", "model.kinds.full.attention.kind=flash")
    assert status == 2
    assert "--set model.kinds.full.attention.kind=flash" in err
    assert "full" in err
    assert "sliding" in err


def test_a_factor_without_a_kind_is_refused(run: Run) -> None:
    status, _, err = run("plan", "tiny-llama", "--set", "model.kinds.full.rotary={kind: null, factor: 0.25}")
    assert status == 2
    assert "partial" in err
    assert "proportional" in err


def test_a_plan_is_made_without_weights(run: Run) -> None:
    status, out, _ = run("plan", "qwen3-4b", "--json")
    plan = json.loads(out)
    assert status == 0
    assert plan["functions"] == {"decode": 1, "prefill": 64}
    assert sum(cost["bytes"] for cost in plan["costs"] if cost["what"].startswith(("weights", "table"))) > 8e9


def test_a_build_needs_a_checkpoint_from_somewhere(run: Run, tmp_path: Path) -> None:
    status, _, err = run("build", "tiny-llama", "--out", tmp_path)
    assert status == 2
    assert err == "tiny-llama: the recipe names no checkpoint: pass one with --checkpoint SRC\n"


def test_the_checkpoint_of_another_model_is_refused_before_anything_is_written(run: Run, tmp_path: Path) -> None:
    status, _, err = run("build", "smollm2-135m", "--checkpoint", TINY, "--out", tmp_path / "dist")
    assert status == 2
    assert "model.embed_tokens.weight is (512, 96), but the recipe needs (49152, 576)" in err
    assert not (tmp_path / "dist").exists()


def test_a_truncated_checkpoint_is_refused(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    weights = checkpoint / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    status, _, err = run("build", "tiny-llama", "--checkpoint", checkpoint, "--out", tmp_path / "dist")
    assert status == 2
    assert "model.safetensors" in err
    assert len(err.splitlines()) == 1


def test_a_wrong_header_length_is_refused(run: Run, checkpoint: Path) -> None:
    weights = checkpoint / "model.safetensors"
    weights.write_bytes((1 << 40).to_bytes(8, "little") + weights.read_bytes()[8:])
    status, _, err = run("validate", "tiny-llama", "--checkpoint", checkpoint)
    assert status == 2
    assert "header" in err


@pytest.mark.parametrize("shard", ["missing.safetensors", "../outside.safetensors"])
def test_an_index_that_names_a_file_that_is_not_there_or_outside_is_refused(
    run: Run, checkpoint: Path, shard: str
) -> None:
    (checkpoint / "model.safetensors").rename(checkpoint / "model-00001-of-00001.safetensors")
    index = {"weight_map": {"model.norm.weight": shard}}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
    status, _, err = run("validate", "tiny-llama", "--checkpoint", checkpoint)
    assert status == 2
    assert shard in err


def test_half_a_gguf_is_refused(run: Run, tmp_path: Path) -> None:
    (tmp_path / "half.gguf").write_bytes(b"GGUF" + (3).to_bytes(4, "little") + (10).to_bytes(8, "little"))
    status, _, err = run("build", "tiny-llama", "--checkpoint", tmp_path / "half.gguf")
    assert status == 2
    assert "half.gguf" in err


def test_a_pickle_is_refused_with_the_reason(run: Run, checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").rename(checkpoint / "pytorch_model.bin")
    status, _, err = run("validate", "tiny-llama", "--checkpoint", checkpoint)
    assert status == 2
    assert "safetensors" in err


def test_a_folder_that_cannot_be_written_is_one_sentence(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    status, _, err = run("build", "tiny-llama", "--checkpoint", TINY, "--out", tmp_path / "file", "--no-verify")
    assert status == 2
    assert str(tmp_path / "file") in err
    assert len(err.splitlines()) == 1
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_full_disk_is_said_before_anything_is_converted(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(100, 99, 1))
    status, _, err = run("build", "tiny-llama", "--checkpoint", TINY, "--out", tmp_path, "--no-verify")
    assert status == 2
    assert "0.80 MB are needed, but only 0.00 MB are free" in err
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_no_bundle_is_said_to_be_none(run: Run, tmp_path: Path) -> None:
    status, _, err = run("run", tmp_path, "hello")
    assert status == 2
    assert f"{tmp_path}: not a bundle" in err


def test_a_prompt_longer_than_the_context_is_refused_before_anything_is_generated(run: Run, tiny_bundle: Path) -> None:
    status, out, err = run("run", tiny_bundle, "In the beginning " * 200)
    assert (status, out) == (2, "")
    assert "but the bundle's context is 256" in err


def test_running_into_the_end_of_the_context_stops_with_length(run: Run, tiny_bundle: Path) -> None:
    status, out, _ = run("run", tiny_bundle, "In the beginning", "--max-tokens", 1000, "--json")
    assert status == 0
    assert json.loads(out)["finish_reason"] == "length"


def test_an_unverified_bundle_is_said_to_be_unverified(run: Run, tiny_bundle: Path) -> None:
    _, out, err = run("run", tiny_bundle, "In the beginning", "--max-tokens", 4)
    assert out.strip()
    assert err.startswith("not verified\n")


def test_a_modified_bundle_is_not_verified(run: Run, tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    with (bundle / "tokenizer.json").open("a") as file:
        file.write(" ")
    status, _, err = run("verify", bundle, "--checkpoint", TINY)
    assert status == 2
    assert err == f"{bundle}: modified since it was built: tokenizer.json\n"


def test_nothing_verified_is_status_1(run: Run, tiny_bundle: Path) -> None:
    status, out, _ = run("verify", tiny_bundle, "--stage", "compressed", "--json")
    assert status == 1
    assert json.loads(out)["passed"] is False


def test_a_wrong_option_is_status_2(run: Run) -> None:
    assert run("build", "tiny-llama", "--chekpoint", "x")[0] == 2


def test_a_word_that_is_none_of_several_is_said_with_them(run: Run, tiny_bundle: Path) -> None:
    """typer says "Value error" before it, which is no word of ours."""
    status, _, err = run("verify", tiny_bundle, "--runtime", "ane")
    words = "'ane' is not one of 'auto', 'evaluator', 'coreml', 'coreai'."
    assert (status, err.partition("\n")[0]) == (2, f"recipe verify: Invalid value for '--runtime': {words}")


def test_ctrl_c_while_building_leaves_the_previous_bundle(tmp_path: Path, tiny_bundle: Path) -> None:
    shutil.copytree(tiny_bundle, tmp_path / "tiny-llama")
    before = (tmp_path / "tiny-llama/manifest.json").read_bytes()
    command = "import os, signal, coreai_recipes.targets.coreml.convert as convert\n"
    command += "convert.convert_fragment = lambda fragment, traced: os.kill(os.getpid(), signal.SIGINT)\n"
    command += "from coreai_recipes.cli import main\nmain()"
    arguments = ["build", "tiny-llama", "--checkpoint", str(TINY), "--out", str(tmp_path), "--no-cache", "--no-verify"]
    ended = subprocess.run(
        [sys.executable, "-c", command, *arguments], capture_output=True, text=True, env={**os.environ}, check=False
    )
    assert (ended.returncode, ended.stderr.strip()) == (130, "interrupted")
    assert (tmp_path / "tiny-llama/manifest.json").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["tiny-llama"]
    assert signal.SIGINT == 2


def test_a_rotary_that_the_reference_does_not_have_is_status_2_with_its_line(run: Run, tmp_path: Path) -> None:
    _, text, _ = run("show", "gemma4-e4b")
    lines = text.splitlines()
    number = next(at for at, line in enumerate(lines, 1) if "kind: proportional" in line)
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(text.replace("kind: proportional", "kind: partial"))
    status, out, err = run("validate", recipe)
    assert (status, out) == (2, "")
    column = lines[number - 1].index("proportional") + 1
    assert f"{recipe}:{number}:{column}: model.kinds.full.rotary.kind: `partial` here" in err
    assert "15.4 dB on Gemma 4's global layers, where text stays fluent and fewer drafted tokens are accepted" in err
    assert "write `kind: proportional`; for another architecture, set `reference: null`" in err


def test_help_is_short_and_a_flag_has_no_type(run: Run) -> None:
    """`-h` was no option, and `--json` was said to take a `<bool>`."""
    for command in ("", "build", "run", "new", "cache"):
        status, out, _ = run(*([command] if command else []), "-h")
        assert status == 0
        assert "<bool>" not in out
        assert "-h" in out


def test_out_is_the_same_option_everywhere(run: Run, tmp_path: Path) -> None:
    """`new` took `-o` alone, and `build` `--out` alone."""
    for number, option in enumerate(("-o", "--out")):
        assert run("new", TINY, option, tmp_path / f"{number}.yaml")[0] == 0
        assert "names no checkpoint" in run("build", "tiny-llama", option, tmp_path)[2]


def test_set_is_the_same_option_for_validate_and_verify(run: Run, tiny_bundle: Path) -> None:
    assert "context" in run("validate", "tiny-llama", "--set", "export.context=1")[2]
    assert run("verify", "tiny-llama", "--set", "export.contex=1")[0] == 2
    status, _, err = run("verify", tiny_bundle, "--set", "export.context=64")
    assert (status, err) == (2, f"{tiny_bundle}: --set applies to recipes, and this is already built\n")


def test_a_bundle_is_found_by_its_name_in_dist(run: Run, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root := tiny_bundle.parents[1] / "by-name").mkdir()
    (root / "dist").symlink_to(tiny_bundle.parent)
    monkeypatch.chdir(root)
    assert run("run", "tiny-llama", "In the", "--max-tokens", 1)[0] == 0
    status, _, err = run("run", "tiny-lama", "In the")
    assert status == 2
    assert err == "tiny-lama: no such bundle, here or in dist/\n  did you mean `tiny-llama`?\n"
    assert "build it first: `recipe build qwen3-4b`" in run("chat", "qwen3-4b")[2]


def test_what_a_template_is_given_is_a_yaml_scalar(run: Run, tiny_bundle: Path) -> None:
    ask = ("run", tiny_bundle, "In the", "--max-tokens", 1)
    status, _, err = run(*ask, "--template", "a-b=1", "--template", "k=[1]", "--template", "one", "--template", "two")
    assert status == 2
    assert err.splitlines() == [
        "--template a-b=1: not KEY=VALUE, as in enable_thinking=false",
        "--template k=[1]: the value must be a word, a number, true or false",
        "--template two: one was given too; name one chat template",
    ]
    assert "has no chat template for the variables" in run(*ask, "--template", "enable_thinking=false")[2]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is not JSON: "),
        ("[]", "must be a list of messages, as in "),
        ('[{"role": "user"}, {"role": 1, "content": null}]', "message 1: content and role: no text"),
        ("[" * 200 + "]" * 200, "nested too deeply"),
    ],
)
def test_a_file_that_is_no_conversation_is_a_sentence(run: Run, tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "m.json").write_text(text)
    status, _, err = run("run", "any", "--messages", tmp_path / "m.json")
    assert status == 2
    assert said in err
    assert all(line.startswith(f"{tmp_path / 'm.json'}: ") for line in err.splitlines())


def test_a_prompt_or_a_conversation_is_needed(run: Run, tiny_bundle: Path, tmp_path: Path) -> None:
    assert run("run", tiny_bundle)[2] == "recipe run: give a PROMPT, or a conversation with --messages FILE\n"
    (tmp_path / "m.json").write_text('[{"role": "user", "content": "hi"}]')
    assert "messages need a chat template: it has none" in run("run", tiny_bundle, "--messages", tmp_path / "m.json")[2]


def test_the_cache_is_listed_and_emptied_of_what_is_ours(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RECIPE_CACHE", str(tmp_path))
    assert json.loads(run("cache", "list", "--json")[1])[0]["what"] == "0 conversions"
    from coreai_recipes.export.cache import FragmentCache

    FragmentCache(tmp_path / "fragments").put("key", b"bytes")
    (tmp_path / "fragments/notes.txt").write_text("the user's")
    fragments = json.loads(run("cache", "list", "--json")[1])[0]
    assert fragments == {"what": "1 conversion", "bytes": 37, "path": str(tmp_path / "fragments")}
    assert run("cache", "clean")[:2] == (0, "1 conversion removed, 0.0 MB\n")
    assert [path.name for path in (tmp_path / "fragments").iterdir()] == ["notes.txt"]


def test_the_hubs_models_are_listed_and_stay(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache as huggingface_hub lays it out: a built-in recipe's checkpoint is ours to list, a stranger's is not."""
    from huggingface_hub.utils import _cache_manager

    monkeypatch.setenv("RECIPE_CACHE", str(tmp_path / "ours"))
    monkeypatch.setattr(_cache_manager, "HF_HUB_CACHE", str(tmp_path / "hub"))
    for name in ("models--Qwen--Qwen3-0.6B", "models--org--other", "datasets--Qwen--Qwen3-0.6B"):
        model = tmp_path / "hub" / name
        snapshot = model / "snapshots" / ("c" * 40)
        for folder in (snapshot, model / "blobs", model / "refs"):
            folder.mkdir(parents=True)
        (model / "blobs/digest").write_bytes(b"weights")
        (snapshot / "model.safetensors").symlink_to("../../blobs/digest")
        (model / "refs/main").write_text("c" * 40)
    here = str(tmp_path / "hub/models--Qwen--Qwen3-0.6B")
    for _ in range(2):
        assert json.loads(run("cache", "list", "--json")[1])[1:] == [
            {"what": "Qwen/Qwen3-0.6B", "bytes": 7, "path": here}
        ]
        assert run("cache", "clean")[:2] == (0, "0 conversions removed, 0.0 MB\n")
