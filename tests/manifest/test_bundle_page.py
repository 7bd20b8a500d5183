"""docs/bundle.md, schemas/manifest.schema.json, the models and the manifests of real builds say the same."""

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from coreai_recipes import Recipe, build, load_recipe
from coreai_recipes.evaluate import Program
from coreai_recipes.hosts.logits import choices
from coreai_recipes.manifest.json_schema import json_schema, schema_text
from coreai_recipes.manifest.reading import read_manifest, typed
from coreai_recipes.manifest.schema import Manifest

pytestmark = pytest.mark.xdist_group(__name__)

jsonschema = pytest.importorskip("jsonschema")
ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/bundle.md").read_text()
TINY = ROOT / "tests/checkpoints/tiny-llama"
WIDE = 16_400  # tokens: more than one axis holds
CELL = re.compile(r"`([A-Za-z_0-9]+)`")


@pytest.fixture(scope="module")
def chosen_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Chooses the token itself."""
    overrides = ["export.outputs=ids", "export.functions.score=4"]
    return build("tiny-llama", TINY, tmp_path_factory.mktemp("chosen"), overrides=overrides, verified=False).path


@pytest.fixture(scope="module")
def wide_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Logits in two pieces, keys and values in states of their own."""
    folder = tmp_path_factory.mktemp("wide")
    torch.manual_seed(0)
    shape = {"vocab_size": WIDE, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "tie_word_embeddings": True}
    LlamaForCausalLM(LlamaConfig(**shape, **heads, eos_token_id=0)).save_pretrained(folder / "wide")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TINY / name, folder / "wide")
    whole = load_recipe("tiny-llama").model_dump()
    model = whole["model"] | {"vocab_size": WIDE, "hidden_size": 16, "layers": [{"repeat": 1, "of": ["full"]}]}
    kind = model["kinds"]["full"]
    kind["attention"] |= {"num_heads": 2, "num_kv_heads": 1, "head_dim": 8}
    kind["mlp"] |= {"intermediate_size": 32}
    recipe = whole | {"model": model, "export": whole["export"] | {"states": "per_kind", "context": 32}}
    return build(Recipe.model_validate(recipe), folder / "wide", folder / "dist", verified=False).path


@pytest.fixture(params=["tiny_bundle", "gemma4_tiny_bundle", "chosen_bundle", "wide_bundle"])
def bundle(request: pytest.FixtureRequest) -> Path:
    return Path(request.getfixturevalue(request.param))


def table_of(header: str) -> list[list[str]]:
    """The cells of the table whose first line begins with `header`."""
    lines = PAGE[PAGE.index(f"\n{header} |") + 1 :].partition("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def rows_of(header: str) -> dict[str, list[str]]:
    """The same by the names in the first cells."""
    return {name: row for row in table_of(header) for name in CELL.findall(row[0])}


def keys_of(schema: Any) -> Iterator[str]:
    """Every key that a JSON Schema gives a meaning."""
    if isinstance(schema, dict):
        yield from schema.get("properties", {})
        for value in schema.values():
            yield from keys_of(value)


def test_the_committed_schema_is_the_generated_one() -> None:
    committed = (ROOT / "schemas/manifest.schema.json").read_text()
    assert committed == schema_text(), "run `make schema`"
    jsonschema.Draft202012Validator.check_schema(json_schema())


def test_every_key_of_the_models_is_on_the_page() -> None:
    assert {key for key in keys_of(json_schema()) if f"`{key}`" not in PAGE} == set()


def test_the_page_has_no_key_that_there_is_not() -> None:
    assert rows_of("| key").keys() == Manifest.model_fields.keys()


def test_a_real_manifest_is_what_the_schema_and_the_models_say(bundle: Path) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert [error.message for error in jsonschema.Draft202012Validator(json_schema()).iter_errors(manifest)] == []
    assert manifest.keys() <= Manifest.model_fields.keys()
    said = typed(Manifest, read_manifest(bundle), "here").model_dump(mode="json", exclude_unset=True)
    assert said == manifest  # no key of an entry is unknown to the models


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("format", 1),
        ("context", 0),
        ("logits", None),
        ("packages.0.file", "../model.mlpackage"),
        ("packages.0.role", "draft"),
        ("packages.0.functions.decode.inputs.position.dtype", "float64"),
        ("states.kv_full.kinds.full.window", "none"),
        ("files", {"/etc/passwd": {"bytes": 1, "sha256": "0" * 64}}),
    ],
)
def test_the_schema_refuses_what_the_models_refuse(tiny_bundle: Path, path: str, value: Any) -> None:
    manifest = json.loads((tiny_bundle / "manifest.json").read_text())
    place: Any = manifest
    *parents, last = path.split(".")
    for part in parents:
        place = place[int(part) if part.isdigit() else part]
    place[last] = value
    assert not jsonschema.Draft202012Validator(json_schema()).is_valid(manifest)


def expected(said: str, function: str, sizes: Mapping[str, int]) -> tuple[str, list[int]]:
    """A cell like `float16 (1, pieces, columns); of `score` (1, N, pieces, columns)` in the numbers of a manifest."""
    shapes = re.findall(r"\(([^)]*)\)", said)
    shape = shapes[-1] if function == "score" else shapes[0]
    dtype = said.split()[0].strip(",")
    return dtype, [int(size) if size.isdigit() else sizes[size] for size in re.findall(r"\w+", shape)]


def test_the_functions_of_a_real_manifest_are_those_of_the_page(bundle: Path) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    functions, inputs, outputs = rows_of("| function"), rows_of("| input"), rows_of("| output")
    (program,) = (entry for entry in manifest["packages"] if entry["role"] != "table")
    recipe = load_recipe(bundle / "recipe.yaml")
    assert program["functions"].keys() <= functions.keys()
    for name, function in program["functions"].items():
        sizes = {"query": function["query"], "N": function["query"], "C": recipe.model.hidden_size}
        assert function["query"] == 1 or name not in ("decode", "draft")
        for port, found in function["inputs"].items():
            _, said, of, _ = inputs["seen_KIND" if port.startswith("seen_") else port]
            columns = [entry["shape"][1] for entry in manifest["packages"] if entry.get("input") == port]
            assert name in CELL.findall(of) or (of.startswith("all") and f"all but `{name}`" not in of)
            assert expected(said, name, sizes | dict.fromkeys(["columns"], *columns)) == tuple(found.values())
        for port, found in function["outputs"].items():
            said = outputs["ids"][1].replace("int32", "float16") if port == "values" else outputs[port][1]
            assert expected(said, name, sizes | manifest["logits"]) == tuple(found.values())


def test_the_conversation_of_the_page_gives_what_one_token_at_a_time_gives(tiny_bundle: Path) -> None:
    program = Program(tiny_bundle / "model.mlpackage")
    tokens, by_token, state = [(37 * index + 5) % 512 for index in range(22)], [], program.make_state()
    for position, token in enumerate(tokens):
        inputs = {"input_ids": torch.tensor([[token]]), "position": torch.tensor([position])}
        by_token.append(choices(program.function("decode")(inputs, state), 512)[-1])
    state, fed = program.make_state(), 0
    for _, function, _, position, count, _ in table_of("| call"):
        assert int(position) == fed
        name, real = function.strip("`"), 1 if count == "-" else int(count)
        padding = [0] * (16 - real) if name == "prefill" else []
        inputs = {"input_ids": torch.tensor([[*tokens[fed : fed + real], *padding]]), "position": torch.tensor([fed])}
        given = inputs | ({"count": torch.tensor([real])} if name == "prefill" else {})
        fed += real
        torch.testing.assert_close(choices(program.function(name)(given, state), 512)[-1], by_token[fed - 1])
    assert fed == len(tokens)
