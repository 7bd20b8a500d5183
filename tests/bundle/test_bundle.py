"""A built folder: what its manifest promises, that it is sealed, and that a build that fails leaves nothing behind."""

import json
import re
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

import pytest
from built_bundles import CHECKPOINT, NAME, contents

from coreai_recipes.bundle import Bundle, build
from coreai_recipes.decoder.model import count_parameters
from coreai_recipes.errors import BundleError
from coreai_recipes.evaluate import EvaluationError
from coreai_recipes.evaluate.cost import function_costs
from coreai_recipes.manifest.contents import is_bundle
from coreai_recipes.manifest.staging import check_place
from coreai_recipes.recipe import load_recipe

CONTEXT, PREFILL, LAYERS, VOCAB = 256, 16, 4, 512


def test_a_build_finds_what_lint_finds_in_the_bundle(first: Bundle) -> None:
    """It looks while the weights are still to come."""
    from coreai_recipes.lint.findings import lint
    from coreai_recipes.lint.reading import open_subject

    opened = open_subject(first.path)
    opened.units = first.recipe.export.compute_units
    found = lint(opened)
    assert first.lint is not None
    assert first.lint.crossings == found.crossings
    ours, theirs = ([(f.id, f.level, f.function, f.message) for f in each.findings] for each in (first.lint, found))
    assert ours == theirs != []


def digest(path: Path) -> str:
    return sha256(path.read_bytes()).hexdigest()


# --- the manifest, key by key -----------------------------------------------------------------------------------------


def test_the_manifest_has_these_keys_and_no_others(first: Bundle) -> None:
    assert list(first.manifest) == [
        "format", "name", "recipe_sha256", "checkpoint", "versions", "context", "vocab_size", "logits", "packages",
        "states", "carried", "eos_token_ids", "tokens", "files",
    ]  # fmt: skip
    assert json.loads((first.path / "manifest.json").read_text()) == first.manifest


def test_the_manifest_says_what_was_built_from_what(first: Bundle) -> None:
    manifest = first.manifest
    assert manifest["format"] == 2
    assert manifest["name"] == NAME
    assert manifest["recipe_sha256"] == digest(first.path / "recipe.yaml")
    assert manifest["checkpoint"] == {
        "source": "tiny-llama",
        "sha256": {"model.safetensors": digest(CHECKPOINT / "model.safetensors")},
        "bytes": {"model.safetensors": (CHECKPOINT / "model.safetensors").stat().st_size},
        "config_sha256": digest(CHECKPOINT / "config.json"),
    }
    packages = ("coreai-recipes", "coremltools", "torch")
    assert manifest["versions"] == {package: version(package) for package in packages}
    assert (manifest["context"], manifest["vocab_size"]) == (CONTEXT, VOCAB)
    ids = json.loads((CHECKPOINT / "generation_config.json").read_text())["eos_token_id"]
    assert manifest["eos_token_ids"] == (ids if isinstance(ids, list) else [ids])


def test_the_manifest_describes_the_package_and_its_functions(first: Bundle) -> None:
    costs = function_costs(first.package)
    figures = ("flops", "weight_bytes", "state_bytes", "result_bytes", "padded_bytes")
    cost = {name: {figure: getattr(found, figure) for figure in figures} for name, found in costs.items()}
    one, many = {"dtype": "int32", "shape": [1]}, {"dtype": "int32", "shape": [1, PREFILL]}
    logits = {"logits": {"dtype": "float16", "shape": [1, 1, VOCAB]}}
    assert first.manifest["packages"] == [
        {
            "file": "model.mlpackage",
            "role": "all",
            "layers": [0, LAYERS],
            "functions": {
                "decode": {
                    "query": 1,
                    "steps": None,
                    "inputs": {"input_ids": {"dtype": "int32", "shape": [1, 1]}, "position": one},
                    "outputs": logits,
                    "cost": cost["decode"],
                },
                "prefill": {
                    "query": PREFILL,
                    "steps": None,
                    "inputs": {"input_ids": many, "position": one, "count": one},
                    "outputs": logits,
                    "cost": cost["prefill"],
                },
            },
        }
    ]


def test_the_manifest_says_what_a_call_of_each_function_costs(first: Bundle) -> None:
    functions = first.manifest["packages"][0]["functions"]
    decode, prefill = (functions[name]["cost"] for name in ("decode", "prefill"))
    table, parameters = VOCAB * first.recipe.model.hidden_size, count_parameters(first.recipe)
    assert first.recipe.model.head.tied
    assert decode["weight_bytes"] == prefill["weight_bytes"] == 2 * parameters
    rows, head_dim = 288, 32
    attention = first.recipe.model.kinds["full"].attention
    # a multiply-add of each weight and token, the table for the last token alone, and of each key and value a query
    seen = LAYERS * 2 * rows * attention.num_heads * head_dim
    assert 1 < decode["flops"] / (2 * (parameters + seen)) < 1.2
    assert 1 < prefill["flops"] / (2 * (PREFILL * (parameters - table + seen) + table)) < 1.2
    row = 2 * LAYERS * attention.num_kv_heads * head_dim * 2  # keys and values of a position in all layers, float16
    # each row is read, and those of the call are written before
    assert decode["state_bytes"] == (rows + 1) * row
    assert prefill["state_bytes"] == (rows + PREFILL) * row


def test_a_program_that_cannot_be_counted_is_built_without_a_cost(
    fragments: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: Path) -> None:
        raise EvaluationError("control flow")

    monkeypatch.setattr("coreai_recipes.evaluate.cost.function_costs", refuse)
    built = build(NAME, CHECKPOINT, tmp_path, verified=False, cached=False)
    assert [function["cost"] for function in built.manifest["packages"][0]["functions"].values()] == [None, None]


def test_the_manifest_describes_the_states(first: Bundle) -> None:
    rows = 288  # context + prefill - 1, in whole blocks of 32
    kinds = {"full": {"first": 0, "count": LAYERS, "rows": rows, "window": None}}
    state = {"dtype": "float16", "shape": [2 * LAYERS, 2, rows, 32], "role": "kv", "kinds": kinds}
    assert first.manifest["states"] == {"kv_full": state}


def test_the_manifest_is_what_the_package_says_of_itself(first: Bundle) -> None:
    from coreai_recipes.evaluate import Program

    program = Program(first.package)
    (package,) = first.manifest["packages"]
    assert list(package["functions"]) == list(program.functions)
    for name, described in package["functions"].items():
        function = program.function(name)
        for key, found in (("inputs", function.inputs), ("outputs", function.outputs)):
            promised = {port: (p["dtype"], tuple(p["shape"])) for port, p in described[key].items()}
            assert promised == {port: tuple(kind) for port, kind in found.items()}
        states = {key: (s["dtype"], tuple(s["shape"])) for key, s in first.manifest["states"].items()}
        assert states == {key: tuple(kind) for key, kind in function.states.items()}


def test_files_covers_every_file_but_the_manifest_and_the_report(first: Bundle) -> None:
    found = contents(first.path)
    assert set(found) - set(first.manifest["files"]) == {"manifest.json", "report.json"}
    assert {"model.mlpackage/Manifest.json", "recipe.yaml", "tokenizer.json"} <= set(first.manifest["files"])
    for name, sealed in first.manifest["files"].items():
        assert sealed == {"bytes": len(found[name]), "sha256": sha256(found[name]).hexdigest()}
    assert first.bytes == sum(len(found[name]) for name in first.manifest["files"])


def test_the_tokenizer_is_as_the_checkpoint_has_it(first: Bundle) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (first.path / name).read_bytes() == (CHECKPOINT / name).read_bytes()


def test_the_recipe_loads_back_equal(first: Bundle) -> None:
    assert first.recipe == load_recipe(NAME)


def test_an_override_is_in_the_recipe_that_was_built(fragments: Path, tmp_path: Path) -> None:
    overrides = ["export.functions.prefill=8"]
    built = build(NAME, CHECKPOINT, tmp_path, overrides=overrides, verified=False)
    assert Bundle.open(built.path).recipe == load_recipe(NAME, overrides)
    assert built.manifest["packages"][0]["functions"]["prefill"]["query"] == 8


def test_a_bundle_that_was_not_verified_says_so(first: Bundle) -> None:
    assert first.report == {"passed": False, "stages": []}
    assert Bundle.open(first.path).report == first.report


# --- sealed -----------------------------------------------------------------------------------------------------------


def test_nothing_sealed_holds_a_path_or_a_time(first: Bundle) -> None:
    home, host = str(Path.home()), Path("/etc/hostname")
    words = [str(first.path.parent), str(first.path.parent.name), str(CHECKPOINT.parent), str(Path.cwd())]
    words += [home] * (home != "/") + [host.read_text().strip()] * host.is_file()
    for name, content in contents(first.path).items():
        assert [word for word in words if word and word.encode() in content] == [], name
        if not name.endswith(("weight.bin", "tokenizer.json")):
            assert not re.search(rb"20\d\d-[01]\d-[0-3]\d|conversion_date", content), name


def test_a_build_over_an_older_bundle_replaces_it_whole(bundle: Bundle, fragments: Path, first: Bundle) -> None:
    (bundle.path / "tokenizer_config.json").write_text("not as it was built")
    (bundle.path / "tokenizer.json").unlink()
    (bundle.path / "device").mkdir()
    (bundle.path / "device" / "report.json").write_text("{}")
    build(NAME, CHECKPOINT, bundle.path.parent, verified=False)
    assert contents(bundle.path) == contents(first.path)
    assert [path.name for path in bundle.path.parent.iterdir()] == [NAME]


def test_a_bundle_with_notes_in_it_is_kept_before_any_checkpoint_is_opened(bundle: Bundle) -> None:
    (bundle.path / "notes.txt").write_text("mine")
    before = contents(bundle.path)
    with pytest.raises(BundleError) as caught:
        build(NAME, "no/such-checkpoint", bundle.path.parent, verified=False)
    assert caught.value.problems == (
        f"{bundle.path} is kept, because it holds files that no build wrote: notes.txt; choose another --out",
    )
    assert contents(bundle.path) == before


def test_safetensors_and_gguf_of_one_model_give_the_same_weights(
    first: Bundle, fragments: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "checkpoint"))
    from gguf_files import float16, write_gguf
    from transformers import AutoConfig

    from coreai_recipes.checkpoint.open import open_checkpoint

    source = open_checkpoint(CHECKPOINT)
    state = {name: source.read(name) for name in source.tensors}
    write_gguf(tmp_path / "tiny.gguf", "llama", AutoConfig.from_pretrained(CHECKPOINT), state, float16)
    built = build(NAME, tmp_path / "tiny.gguf", tmp_path / "out", verified=False)
    assert contents(built.package) == contents(first.package)
    assert built.manifest["checkpoint"]["source"] == "tiny.gguf"


# --- check_files ------------------------------------------------------------------------------------------------------


def test_a_bundle_as_it_was_built_is_in_order(bundle: Bundle) -> None:
    bundle.check_files()


def test_a_new_report_is_no_modification(bundle: Bundle) -> None:
    (bundle.path / "report.json").write_text('{"passed": true, "stages": []}')
    Bundle.open(bundle.path).check_files()


def test_every_file_that_changed_is_named_in_one_go(bundle: Bundle) -> None:
    weights = bundle.package / "Data/com.apple.CoreML/weights/weight.bin"
    content = bytearray(weights.read_bytes())
    content[-3] ^= 1
    weights.write_bytes(content)
    (bundle.path / "recipe.yaml").write_text("longer than before" * 1000)
    (bundle.path / "tokenizer.json").unlink()
    (bundle.package / "extra").write_text("")
    with pytest.raises(BundleError) as caught:
        bundle.check_files()
    assert caught.value.problems == (
        f"{bundle.path}: missing since it was built: tokenizer.json",
        f"{bundle.path}: added since it was built: model.mlpackage/extra",
        f"{bundle.path}: modified since it was built: model.mlpackage/Data/com.apple.CoreML/weights/weight.bin",
        f"{bundle.path}: modified since it was built: recipe.yaml",
    )


# --- opening ----------------------------------------------------------------------------------------------------------


def test_a_bundle_of_a_later_format_is_refused(bundle: Bundle) -> None:
    manifest = bundle.manifest | {"format": 3}
    (bundle.path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError) as caught:
        Bundle.open(bundle.path)
    assert caught.value.problems == (f"{bundle.path}: manifest.json has format 3, this version reads format 2",)


def test_a_bundle_of_an_earlier_format_is_ours_to_replace_and_not_to_be_read(bundle: Bundle) -> None:
    manifest = bundle.manifest | {"format": 1, "states": {"k_full": {"kind": "full"}}}
    (bundle.path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError) as caught:
        Bundle.open(bundle.path)
    assert caught.value.problems == (
        f"{bundle.path}: manifest.json has format 1 of an older version; this version reads format 2: build it again",
    )
    check_place(bundle.path)  # raises for what is not a bundle
    assert is_bundle(bundle.path)


@pytest.mark.parametrize("content", ["[]", '"text"', "3"])
def test_a_manifest_that_is_no_mapping_is_refused(bundle: Bundle, content: str) -> None:
    (bundle.path / "manifest.json").write_text(content)
    with pytest.raises(BundleError, match=r"manifest.json has format \w+, this version reads format 2"):
        Bundle.open(bundle.path)


@pytest.mark.parametrize("content", [b"{", b"", b"\xff\xfe"])
def test_a_manifest_that_is_not_json_is_refused(bundle: Bundle, content: bytes) -> None:
    (bundle.path / "manifest.json").write_bytes(content)
    with pytest.raises(BundleError, match=r"its manifest.json or report.json is not JSON"):
        Bundle.open(bundle.path)


@pytest.mark.parametrize("place", ["nowhere", "a file", "an empty folder"])
def test_a_place_without_a_bundle_is_named(tmp_path: Path, place: str) -> None:
    path = tmp_path / place
    if place == "a file":
        path.write_text("")
    elif place == "an empty folder":
        path.mkdir()
    with pytest.raises(BundleError, match="not a bundle"):
        Bundle.open(path)
