"""The engine's rules in a saved .aimodel: every rule about a program finds what breaks it there, by its place."""

import json
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from coreai_recipes.aimodel.bytecode import Replacement, splice
from coreai_recipes.aimodel.folder import PROGRAM
from coreai_recipes.aimodel.rewriting import rewrite
from coreai_recipes.bundle.ruling import open_for_rules
from coreai_recipes.errors import UserError
from coreai_recipes.lint import asset as reading
from coreai_recipes.lint.findings import Finding, lint
from coreai_recipes.lint.reading import LintInput, open_subject
from coreai_recipes.lint.rule import rules
from coreai_recipes.lint.vocabulary import OPERATIONS, WEIGHTS
from coreai_recipes.planning.outline import outline
from coreai_recipes.recipe import load_recipe
from tests.targets.coreai.asset_cases import CASES, X, relu
from tests.targets.coreai.asset_texts import Body, Case, text_of, write_asset

pytestmark = pytest.mark.xdist_group(__name__)

Run = Callable[..., tuple[int, str, str]]
# what the bundle's own program must not have, whatever its size
ABOUT_OPERATIONS = (
    "rank-5", "dyn-shape", "f32-mid", "int-mid", "exp-raw", "square-256", "nan-logic", "mask-inf", "trig", "gather-dyn",
    "gather-nd", "no-path", "repeat-kv", "linear-conv", "dyn-weight", "slice-w4094", "rsqrt-0", "crossing",
)  # fmt: skip


def function_of(rule: str, what: str) -> str:
    return f"{rule.replace('-', '_')}_{what}"


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> LintInput:
    """One asset with a function for each case."""
    cases = {
        function_of(rule, what): case
        for rule, pair in CASES.items()
        for what, case in zip(("breaks", "keeps"), pair, strict=True)
    }
    return open_subject(write_asset(text_of(cases), tmp_path_factory.mktemp("cases") / "cases.aimodel"))


@pytest.mark.parametrize("rule", CASES)
def test_a_rule_fires_where_it_must_and_nowhere_else(rule: str, opened: LintInput) -> None:
    found: dict[str | None, list[Finding]] = {}
    for finding in lint(opened, only=[rule]).findings:
        found.setdefault(finding.function, []).append(finding)
    worst, *_ = found[function_of(rule, "breaks")]
    assert worst.level == CASES[rule][0].level
    assert all((worst.message, worst.place, worst.source))
    assert function_of(rule, "keeps") not in found


def test_every_rule_that_holds_for_the_format_has_its_cases() -> None:
    assert CASES.keys() | {"eos-template"} == {rule.id for rule in rules().values() if "coreai" in rule.formats}


def test_the_vocabulary_is_of_the_dialects_own_operations() -> None:
    import coreai.authoring.asset  # noqa: F401  without which the dialect cannot be imported
    from coreai._compiler.dialects import _coreai_ops_gen as dialect

    known = {getattr(each, "OPERATION_NAME", "").removeprefix("coreai.") for each in vars(dialect).values()}
    assert OPERATIONS.keys() | WEIGHTS.keys() <= known


def plant(asset: Path, planted: Path) -> Path:
    """The same program with a remainder in place of decode's silu."""
    silu = re.compile(r"coreai\.silu (%\w+) : \((tensor<1x176x1x1xf16>)\) -> (tensor<1x176x1x1xf16>)")
    remainder = r"coreai.decomposable.broadcasting_modulo \1, \1 : (\2, \2) -> \3"
    rewrite(asset, planted, lambda text: silu.sub(remainder, text))
    return planted


def test_a_planted_operation_is_found_by_graph_call_and_function(bundle: Path, run: Run, tmp_path: Path) -> None:
    asset = bundle / "model.aimodel"
    assert lint(open_subject(asset), only=ABOUT_OPERATIONS).findings == ()
    planted = open_subject(plant(asset, tmp_path / "planted.aimodel"))
    places = [(finding.function, finding.place) for finding in lint(planted, only=["no-path"]).findings]
    number = places[0][1].partition("%")[2]
    assert places == [("decode", f"layer_full_1.{layer}/%{number}") for layer in range(4)]
    status, out, _ = run("lint", tmp_path / "planted.aimodel")
    assert status == 1
    assert f"decode: layer_full_1.0/%{number} and 3 more\n    mod inside the layers, which the engine does not" in out


def test_a_bundles_own_program_is_what_rules_see(bundle: Path, run: Run, tmp_path: Path) -> None:
    other = shutil.copytree(bundle, tmp_path / "bundle")
    shutil.rmtree(other / "model.aimodel")
    plant(bundle / "model.aimodel", other / "model.aimodel")
    found = json.loads(run("lint", other, "--json")[1])
    assert {finding["id"] for finding in found["findings"] if finding["level"] == "error"} == {"no-path"}
    assert "unread" not in found


def test_a_place_in_a_graph_that_a_graph_calls_names_both(tmp_path: Path) -> None:
    def inner(b: Body, x: str) -> str:
        return b.make("sin", "1x32xf16", x)

    def outer(b: Body, x: str) -> str:
        return b.call("inner", "1x32xf16", b.call("inner", "1x32xf16", x))

    def main(b: Body, x: str) -> str:
        return b.call("inner", "1x32xf16", b.call("outer", "1x32xf16", b.make("relu", "1x32xf16", x)))

    text = text_of({"main": Case(main, X)}, {"inner": Case(inner, X), "outer": Case(outer, X)})
    found = lint(open_subject(write_asset(text, tmp_path / "one.aimodel")), only=["trig"]).findings
    assert [finding.place for finding in found] == ["outer.0/inner.0/%0", "outer.0/inner.1/%0", "y"]


def test_graphs_that_call_without_an_end_are_one_sentence(tmp_path: Path) -> None:
    def again(b: Body, x: str) -> str:
        return b.call("again", "1x32xf16", x)

    def next_of(number: int) -> Callable[[Body, str], str]:
        return lambda b, x: b.call(f"graph_{number + 1}", "1x32xf16", x)

    deep = {f"graph_{number}": Case(next_of(number), X) for number in range(120)} | {"graph_120": Case(relu, X)}
    for name, private, said in (
        ("itself", {"again": Case(again, X)}, "its graph 'again' calls itself"),
        ("deep", deep, "its graphs call each other more than 100 deep"),
    ):
        main = Case(again if name == "itself" else next_of(-1), X)
        asset = write_asset(text_of({"main": main}, private), tmp_path / f"{name}.aimodel")
        with pytest.raises(UserError) as caught:
            open_subject(asset)
        assert caught.value.problems == (f"{asset}: {said}",)


def test_without_the_extra_an_asset_is_refused_and_a_bundle_is_drawn_by_its_recipe(
    bundle: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "find_spec", lambda name: None)
    asset, said = bundle / "model.aimodel", "its program is read by coreai-core, which is not installed: "
    said += "pip install 'coreai-recipes[coreai]'"
    assert run("lint", asset) == (2, "", f"{asset}: {said}\n")
    status, out, _ = run("lint", bundle)
    assert status == 0
    assert out.endswith(f"held against the sizes of the recipe alone: {said}\n")
    assert json.loads(run("lint", bundle, "--json")[1])["unread"] == said
    planned = outline(load_recipe("tiny-llama", ["export.format=coreai"]))
    assert lint(open_for_rules(bundle), only=["embed-in"]).findings == lint(planned, only=["embed-in"]).findings


def swollen(asset: Path, size: int) -> Path:
    """With so many bytes as its one weight, a hole in the file."""
    hole = bytes(1 << 20)
    parts = [hole] * (size // len(hole))
    blocks = [*splice((asset / PROGRAM).read_bytes(), lambda name, _: Replacement(size, lambda: parts), False)]
    with (asset / PROGRAM).open("wb") as file:
        for block in blocks:
            if block is hole:
                file.seek(len(hole), 1)
            else:
                file.write(block)
        file.truncate()
    return asset


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of a process is read from /proc")
def test_a_gigabyte_of_weights_is_not_read(tmp_path: Path) -> None:
    """By either process: each takes as much for it as for a weight of 64 bytes, to 64 MB."""
    text = text_of({"main": Case(lambda b, x: b.wide("batch_matmul", "1x64xf16", x, b.weight("32x64xf16")), X)})
    small = write_asset(text, tmp_path / "small.aimodel")
    large = swollen(write_asset(text, tmp_path / "large.aimodel"), 1 << 30)
    assert (large / PROGRAM).stat().st_size > 1 << 30
    for module, function in (("aimodel.graphs", "read_graphs"), ("lint.asset", "read_asset")):
        code = (
            f"import sys; from pathlib import Path; from coreai_recipes.{module} import {function}; "
            f"{function}(Path(sys.argv[1])); print(Path('/proc/self/status').read_text())"
        )
        peaks = []
        for asset in (small, large):
            done = subprocess.run([sys.executable, "-c", code, asset], capture_output=True, text=True, check=True)
            peaks.append(int(re.search(r"VmHWM:\s*(\d+) kB", done.stdout)[1]) / 1024)
        assert peaks[1] - peaks[0] < 64, (function, peaks)


@pytest.mark.parametrize("seed", range(6))
def test_a_damaged_program_is_one_sentence(bundle: Path, seed: int, tmp_path: Path) -> None:
    """coreai-core aborts its process over some of these."""
    draw = random.Random(seed)
    asset = shutil.copytree(bundle / "model.aimodel", tmp_path / "one.aimodel")
    content = bytearray((asset / PROGRAM).read_bytes())
    if seed == 0:
        content = content[: len(content) // 2]
    for _ in range(seed * 20):
        content[draw.randrange(4, 20_000)] = draw.randrange(256)
    (asset / PROGRAM).write_bytes(content)
    with pytest.raises(UserError) as caught:
        open_subject(asset)
    (problem,) = caught.value.problems
    assert problem.startswith(f"{asset / PROGRAM}: ")
    assert problem.isprintable()


def test_what_is_no_asset_is_one_sentence(tmp_path: Path) -> None:
    asset = tmp_path / "one.aimodel"
    with pytest.raises(UserError, match=r"one\.aimodel: there is no such asset"):
        open_subject(asset)
    asset.mkdir()
    with pytest.raises(UserError, match=r"is no asset of Core AI: it has no main\.mlirb"):
        open_subject(asset)
    (asset / PROGRAM).write_bytes(b"")
    with pytest.raises(UserError, match=r"main\.mlirb: is empty"):
        open_subject(asset)
    shutil.rmtree(asset)
    write_asset(text_of({}, {"alone": Case(relu, X)}), asset)
    with pytest.raises(UserError, match=r"one\.aimodel: has no functions"):
        open_subject(asset)
