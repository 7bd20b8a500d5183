"""Plugins: the examples of docs/extending.md, taken through every command, and every way in which a plugin is wrong."""

import json
import re
import runpy
import shutil
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from coreai_recipes import UserError, build, build_decoder, load_recipe, verify
from coreai_recipes.export.pieces import source_files
from coreai_recipes.primitives import mlp, registry
from coreai_recipes.primitives.attention import build_attention
from coreai_recipes.primitives.cache import NoCache, mask
from coreai_recipes.primitives.layer_inputs import LayerInputs
from coreai_recipes.recipe import json_schema, kinds, plugins
from coreai_recipes.recipe.plugins import load_plugin

REPOSITORY = Path(__file__).parents[1]
TINY = REPOSITORY / "tests/checkpoints/tiny-llama"
BLOCKS = re.findall(r"```\w+\n# (\S+\.\w+)\n(.*?)```", (REPOSITORY / "docs/extending.md").read_text(), re.DOTALL)
# of attention, in the order of the schema
KINDS = (
    "`full`, `sliding`, `chunked`, `differential`, `latent`, `mixture`, `short_conv`, `gated_delta`, "
    "`lightning`, `mamba1`, `mamba2`, `rg_lru`, `none`"
)
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Takes back what a test registers: registries live as long as the process."""
    before = {id(each): dict(each) for each in (registry._registry, mlp.ACTIVATIONS, kinds._kinds, kinds._activations)}
    models, modules = list(kinds._models), set(sys.modules)
    monkeypatch.setattr(plugins, "_loaded", [])
    yield
    for each in (registry._registry, mlp.ACTIVATIONS, kinds._kinds, kinds._activations):
        each.clear()
        each.update(before[id(each)])  # type: ignore[arg-type]
    kinds._kinds.clear()
    kinds._models[:] = models
    for name in set(sys.modules) - modules:
        if name.startswith("recipe_plugin_"):
            del sys.modules[name]
    plugins.load_installed.cache_clear()
    kinds.rebuild()


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files of docs/extending.md, and the working folder."""
    for name, text in BLOCKS:
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def gated_checkpoint(example: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """tiny-llama with a gate in each layer."""
    monkeypatch.setattr(sys, "argv", ["add_gates.py", str(TINY), "checkpoint"])
    runpy.run_path("add_gates.py")
    return example / "checkpoint"


def test_the_examples_are_as_short_as_their_headings_say() -> None:
    lines = {name: len(text.splitlines()) for name, text in BLOCKS}
    assert lines["mish.py"] <= 10
    assert lines["head_gated.py"] <= 50


def test_a_kind_is_unknown_without_its_plugin_and_valid_with_it(example: Path, run: Run) -> None:
    status, _, error = run("validate", "gated.yaml")
    assert status == 2
    assert error.endswith(
        f"`head_gated` is not one of {KINDS}\n  if a plugin has this kind, name its file with --plugin\n"
    )
    assert run("validate", "gated.yaml", "--plugin", "head_gated.py") == (0, "gated.yaml: valid\n", "")


@pytest.mark.parametrize("order", [("--plugin", "head_gated.py", "validate"), ("validate", "--plugin=head_gated.py")])
def test_mistakes_in_a_plugins_kind_are_explained_as_in_any(example: Path, run: Run, order: tuple[str, ...]) -> None:
    text = Path("gated.yaml").read_text()
    Path("kind.yaml").write_text(text.replace("head_gated,", "head_gate,"))
    Path("key.yaml").write_text(text.replace("gate: head", "gate: heads, gate_bios: true"))
    Path("other.yaml").write_text(text.replace("kind: head_gated, gate: head", "kind: full, gate_bias: true"))
    status, _, error = run(*order, "kind.yaml", "key.yaml", "other.yaml")
    assert status == 2
    said = error.splitlines()
    assert said[0].endswith(f"`head_gate` is not one of {KINDS}, `head_gated`")
    assert said[1] == "  did you mean `head_gated`?"
    assert [line.partition("attention.")[2] for line in said[2::2]] == [
        "gate: `heads` is not one of `head`, `dimension`",
        "gate_bios: unknown key",
        "gate_bias: unknown key",
    ]
    assert said[3::2] == [
        "  did you mean `head`?",
        "  did you mean `gate_bias`?",
        "  `head_gated` has it, `full` does not",
    ]


def test_plugins_are_in_the_json_schema(example: Path, run: Run) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    _, before, _ = run("schema")
    status, out, _ = run("schema", "--plugin", "head_gated.py", "--plugin", "mish.py")
    assert status == 0
    schema = json.loads(out)
    assert schema["$defs"]["HeadGated"]["properties"]["gate"]["enum"] == ["head", "dimension"]
    assert "mish" in schema["$defs"]["GatedMLP"]["properties"]["activation"]["enum"]
    data = {"extends": "tiny-llama", "model": {"kinds": {"full": {"attention": {"kind": "head_gated"}}}}}
    assert jsonschema.Draft7Validator(schema).is_valid(data)
    assert not jsonschema.Draft7Validator(json.loads(before)).is_valid(data)


def test_a_plugins_activation_is_read_from_a_config_and_equals_transformers(example: Path, run: Run) -> None:
    """Its reference is a real one: transformers' Llama with hidden_act mish."""
    folder = Path(shutil.copytree(TINY, example / "mished"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "hidden_act": "mish"}))
    assert run("new", folder)[0] == 2
    status, _, error = run("new", folder, "-o", "mished.yaml", "--plugin", "mish.py")
    assert status == 0, error
    assert load_recipe("mished.yaml").model.kinds["full"].mlp.activation == "mish"  # type: ignore[union-attr]
    report = verify("mished.yaml", folder, stages=["rotary", "torch"], require=["torch"])
    assert report.passed, report.to_json()
    assert verify("mished.yaml", random=True, require=["torch"], stages=["torch"]).passed


def test_a_plugins_activation_that_is_another_function_fails(example: Path) -> None:
    Path("mish.py").write_text(Path("mish.py").read_text().replace("F.softplus(x)", "F.softplus(x) + 0.01"))
    load_plugin("mish.py")
    Path("mished.yaml").write_text("extends: tiny-llama\nmodel: {kinds: {full: {mlp: {activation: mish}}}}\n")
    report = verify("mished.yaml", random=True, stages=["torch"])
    assert report.stages[0].passed is False
    assert report.stages[0].detail["first_below"]["tensor"] == "layers.0.output"


def test_a_plugins_attention_is_built_and_its_package_proven(gated_checkpoint: Path, run: Run) -> None:
    status, out, error = run(
        "build", "gated.yaml", "--plugin", "head_gated.py", "--checkpoint", gated_checkpoint, "--json"
    )
    assert status == 0, error
    stages = {stage["name"]: stage["passed"] for stage in json.loads(out)["report"]["stages"]}
    assert stages["package"] is True
    assert stages["torch"] is None  # reference: null
    assert run("validate", "dist/gated/recipe.yaml")[0] == 0


def test_an_open_gate_is_no_gate_and_a_shut_one_is_no_attention(example: Path) -> None:
    """What the example computes, by its two ends; a gate that was ignored would pass every other test here."""
    load_plugin("head_gated.py")
    kind = load_recipe("gated.yaml").model.kinds["full"]
    plain = load_recipe("tiny-llama").model
    torch.manual_seed(0)
    gated = build_attention(kind, 96, plain.norm)
    open_ended = build_attention(plain.kinds["full"], 96, plain.norm)
    with torch.no_grad():
        for parameter in gated.parameters():
            parameter.normal_(std=0.1)
    open_ended.load_state_dict({k: v for k, v in gated.state_dict().items() if not k.startswith("gate.")})
    x, positions = torch.randn(1, 96, 1, 5).abs(), torch.arange(5)
    cos, sin = (each.transpose(1, 2).unsqueeze(2) for each in gated.rotary.angles(positions[None]))
    given = (x, LayerInputs(mask(positions, positions, None), cos, sin), NoCache())
    gated.gate.weight.fill_(100.0)
    assert torch.equal(gated(*given), open_ended(*given))
    gated.gate.weight.fill_(-100.0)
    assert gated(*given).abs().max() < 1e-6


def test_a_change_of_a_plugin_converts_its_fragments_anew(
    gated_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RECIPE_CACHE", str(gated_checkpoint.parent / "cache"))
    load_plugin("head_gated.py")
    load_plugin("mish.py")
    recipe = load_recipe("gated.yaml", ["model.kinds.full.mlp.activation=mish"])
    layer = build_decoder(recipe).layers[0]
    assert {Path("head_gated.py").resolve(), Path("mish.py").resolve()} <= source_files(layer)

    def conversions() -> int:
        made: list[str] = []
        from coreai_recipes.targets.coreml import convert

        original = convert.convert_fragment
        with monkeypatch.context() as patch:
            patch.setattr(
                convert, "convert_fragment", lambda each, traced: (made.append(each.name), original(each, traced))[1]
            )
            build(recipe, gated_checkpoint, "dist", verified=False)
        return len(made)

    assert conversions() > 0
    assert conversions() == 0
    Path("mish.py").write_text(Path("mish.py").read_text() + "# changed\n")
    assert conversions() > 0


def test_weight_names_are_found_beside_the_plugin(
    gated_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_plugin("head_gated.py")
    recipe = load_recipe("gated.yaml")
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    build(recipe, gated_checkpoint, "dist", verified=False)


NARROW = """
from typing import Literal
from pydantic import Field
from torch import nn
from coreai_recipes.extending import register
from coreai_recipes.primitives.projection import Projection
from coreai_recipes.recipe.schema import Spec


class Narrow(Spec):
    kind: Literal["narrow"]
    rank: int = Field(gt=0, description="width between the projections")


@register("mlp", spec=Narrow)
class NarrowMLP(nn.Module):
    def __init__(self, spec, hidden_size):
        super().__init__()
        self.inner = Projection(hidden_size, spec.rank)
        self.down = Projection(spec.rank, hidden_size)

    def forward(self, x):
        return self.down(self.inner(x))
"""


def test_an_mlp_that_says_its_sizes_in_its_own_words_is_planned(example: Path, run: Run) -> None:
    """Nothing but its parameters says how large it is: `plan` used to ask every MLP for its intermediate_size."""
    (example / "narrow.py").write_text(NARROW)
    (example / "narrow.yaml").write_text(
        "extends: tiny-llama\nname: narrow\nreference: null\n"
        "model: {kinds: {full: {mlp: {kind: narrow, rank: 70000}}}}\n"
    )
    status, output, error = run("plan", "narrow.yaml", "--plugin", "narrow.py", "--json")
    assert status == 0, error
    plan = json.loads(output)
    (cost,) = [row["bytes"] for row in plan["costs"] if row["what"] == "weights of `full`"]
    assert 1 < cost / (2 * 4 * 2 * 70000 * 96) < 1.1
    (wide,) = {row["message"] for row in plan["findings"] if row["id"] == "chan-64k" and row["function"] == "decode"}
    assert wide == "conv gives (1, 70000, 1, 1): 70,000 channels, and 65,536 is the maximum"
    assert run("list")[0] == 0


WRONG = {
    "1 +": ":1: is not valid Python: invalid syntax",
    "\n1 / 0": ":2: raises ZeroDivisionError: division by zero",
    "import no_such_module": ":1: raises ModuleNotFoundError: No module named 'no_such_module'",
    "raise SystemExit": ":1: raises SystemExit",
    "x = 1": ": registers nothing: use `register` of coreai_recipes.extending",
    'register("mlp")(nn.Identity)': ':6: Identity has no schema class: register("mlp", spec=...) names it',
    'register("mpl", spec=Mine)(Module)': ":6: nothing can be registered as `mpl`; "
    "available: attention, mlp, norm, rotary",
    'register("mlp", spec=Spec)(Module)': ':6: Spec does not say its kind: `kind: Literal["..."]`',
    'register("mlp", spec=int)(Module)': ":6: int does not derive from coreai_recipes.recipe.schema.Spec",
    'register("attention", spec=Mine)(Module)': ":6: Mine does not derive from coreai_recipes.recipe.schema.Attention",
    'register("mlp", spec=Mine)(int)': ":6: int does not derive from torch.nn.Module",
    'register("mlp", spec=Mine)(nn.ReLU)': ":6: ReLU(spec, hidden_size) is how a recipe builds it: "
    "too many positional arguments",
    'register("mlp", spec=Gated)(Module)': ":6: primitive mlp `gated` is already "
    "coreai_recipes.primitives.mlp.GatedMLP; "
    "kinds of mlp: gated, moe, none, plain",
    'register("mlp", spec=Mine)(Module); register("mlp", spec=Mine)(Module)': ":6: primitive mlp `mine` is already "
    "recipe_plugin_wrong.Module; kinds of mlp: gated, mine, moe, none, plain",
    'register_activation("silu")(torch.relu)': ":6: there is an activation `silu` already; available: silu, gelu, "
    "gelu_tanh, relu, relu2",
}
PREAMBLE = """import torch; from typing import Literal; from torch import nn
from coreai_recipes.extending import register, register_activation; from coreai_recipes.recipe.schema import Spec
class Mine(Spec): kind: Literal["mine"]
class Gated(Spec): kind: Literal["gated"]
Module = type("Module", (nn.Module,), {"__init__": lambda self, spec, hidden_size: None, "__module__": __name__})
"""


@pytest.mark.parametrize("text", WRONG)
def test_a_wrong_plugin_is_one_sentence_and_status_2(text: str, tmp_path: Path, run: Run) -> None:
    path = tmp_path / "wrong.py"
    path.write_text(f"{PREAMBLE if 'register' in text else ''}{text}\n")
    assert run("list", "--plugin", path) == (2, "", f"{path}{WRONG[text]}\n")


def test_a_plugin_that_is_not_there_is_one_sentence(tmp_path: Path, run: Run) -> None:
    assert run("--plugin", "none.py", "list") == (2, "", "none.py: no such file\n")
    assert run("--plugin", tmp_path, "list") == (2, "", f"{tmp_path}: a folder, not a Python file\n")


def test_a_plugin_given_twice_is_loaded_once(example: Path, run: Run) -> None:
    assert run("--plugin", "mish.py", "validate", "tiny-llama", "--plugin", "./mish.py")[0] == 0


def test_what_a_plugin_prints_is_not_in_a_document(example: Path, run: Run) -> None:
    Path("mish.py").write_text("print('hello')\n" + Path("mish.py").read_text())
    status, out, error = run("list", "--json", "--plugin", "mish.py")
    assert status == 0
    assert isinstance(json.loads(out), list)
    assert "hello" in error


def install(monkeypatch: pytest.MonkeyPatch, folder: Path, module: str) -> None:
    """`module` of `folder` as the plugin of an installed package."""
    monkeypatch.syspath_prepend(str(folder))
    entry = EntryPoint("gates", module, plugins.GROUP)
    vars(entry)["dist"] = SimpleNamespace(name="my-gates", version="2.1")
    monkeypatch.setattr(plugins, "entry_points", lambda group: [entry])
    plugins.load_installed.cache_clear()


def test_an_installed_plugin_needs_no_option(example: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    package = example / "my_gates"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "helper.py").write_text("")
    shutil.move(example / "head_gated.py", package / "gates.py")
    install(monkeypatch, example, "my_gates.gates")
    assert run("validate", "gated.yaml")[0] == 0
    layer = build_decoder(load_recipe("gated.yaml")).layers[0]
    assert {package / "gates.py", package / "helper.py"} <= source_files(layer)
    assert "HeadGated" in json_schema()["$defs"]


def test_an_installed_plugin_that_is_broken_is_named(example: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    (example / "broken_gates.py").write_text("1 / 0\n")
    install(monkeypatch, example, "broken_gates")
    said = "plugin `gates` of my-gates 2.1: raises ZeroDivisionError: division by zero\n"
    status, _, error = run("show", "tiny-llama")
    assert (status, error) == (2, said)
    with pytest.raises(UserError):
        load_recipe("tiny-llama")
