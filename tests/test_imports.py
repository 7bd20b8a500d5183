"""The rooms of the house and who may import whom: an arrow never points up (docs: CONTRIBUTING, "The rooms").

Read from the source with `ast`, so an import inside a function counts as much as one at the top of a file.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import coreai_recipes

PACKAGE = Path(coreai_recipes.__file__).parent

# Top to bottom. A room is a module or a folder of coreai_recipes; it may import the rooms of its row, and itself.
# "*" is every room below; a dotted entry is one module of a room. A new room gets a row below all that import it.
ROOMS: dict[str, set[str]] = {
    "cli": {"*"},
    "commands": {"*"},
    "report": {"storage", "terminal", "errors"},
    "serving": {"generate", "tokenizer", "running", "json_reader", "errors"},
    "zoo": {
        *("scoring", "search", "bundle", "planning", "verification", "lint", "export", "storage", "decoder"),
        *("checkpoint", "tokenizer", "recipe", "manifest", "errors"),
    },
    "generate": {"bundle", "tokenizer", "running", "errors"},
    "audit": {
        *("bundle", "verification", "evaluate", "checkpoint", "tokenizer", "recipe", "manifest"),
        *("json_reader", "errors"),
    },
    "search": {
        *("bundle", "verification", "calibration", "storage", "decoder", "weights", "checkpoint", "primitives"),
        *("recipe", "manifest.staging", "errors"),
    },
    "scoring": {
        *("bundle", "verification", "storage", "decoder", "tokenizer", "recipe", "errors"),
    },
    "bundle": {"*"},
    "planning": {
        *("storage", "lint", "evaluate", "decoder", "weights", "checkpoint", "primitives", "hosts", "recipe"),
        *("manifest", "errors"),
    },
    "extending": {"primitives", "recipe", "errors"},
    "verification": {
        *("running", "evaluate", "calibration", "storage", "decoder", "weights", "checkpoint"),
        *("manifest.staging", "tokenizer", "child_process"),
        *("primitives", "hosts", "recipe", "errors"),
    },
    "lint": {"evaluate", "manifest", "recipe.yaml_reader", "protobuf", "aimodel", "child_process", "errors"},
    "targets": {
        *("export", "storage", "decoder", "weights", "primitives", "recipe", "hosts", "protobuf", "aimodel", "errors"),
    },
    "export": {"storage", "decoder", "weights", "primitives", "hosts", "recipe"},
    "calibration": {
        *("storage", "decoder", "weights", "checkpoint", "primitives", "tokenizer", "recipe", "errors"),
    },
    "storage": {"decoder", "weights", "checkpoint", "hosts", "recipe", "aimodel", "errors"},
    "running": {"evaluate", "hosts", "manifest", "aimodel", "child_process", "errors"},
    "evaluate": {"protobuf", "manifest", "json_reader", "errors"},
    "decoder": {"weights", "checkpoint", "primitives", "hosts", "recipe", "errors"},
    "weights": {"checkpoint", "primitives", "recipe", "errors"},
    "checkpoint": {
        *("recipe.yaml_reader", "recipe.source", "recipe.plugins", "tokenizer", "terminal", "json_reader"),
        *("child_process", "errors"),
    },
    "primitives": {"recipe", "errors"},
    "recipe": {"hosts", "errors"},
    "tokenizer": {"json_reader", "errors"},
    "hosts": set(),
    "manifest": {"json_reader", "errors"},
    "protobuf": set(),
    "aimodel": set(),
    "terminal": {"errors"},
    "child_process": set(),
    "json_reader": set(),
    "errors": set(),
}

# Packages of others that only some rooms know.
KNOWN_TO: dict[str, set[str]] = {
    "coremltools": {"targets", "running"},
    "coreai": {"targets", "aimodel", "running"},
    "coreai_torch": {"targets"},
    "transformers": {"verification", "checkpoint"},
    "gguf": {"checkpoint", "verification"},  # the latter by transformers' reader, to judge ours
    "huggingface_hub": {"checkpoint"},
    "safetensors": {"checkpoint"},
    "dask": {"zoo"},
    "distributed": {"zoo"},
    "fsspec": {"zoo"},
    "pyarrow": {"zoo"},
    "peft": {"verification"},
    "pydantic": {"zoo", "recipe", "extending", "manifest", "lint", "serving"},
    "yaml": {"recipe", "checkpoint"},
    "typer": {"commands"},
    "rich": {"report"},
    "vl_convert": {"report"},
    "starlette": {"serving"},
    "uvicorn": {"serving"},
    "prometheus_client": {"serving"},
    "prompt_toolkit": {"terminal"},
}

HEAVY = {
    *("torch", "coremltools", "coreai", "coreai_torch", "transformers", "numpy"),
    *("dask", "distributed", "fsspec", "pyarrow", "starlette", "uvicorn"),
}


def modules() -> Iterator[tuple[str, Path]]:
    """Every module of the package by its name without `coreai_recipes.`; the package's own front page is left out."""
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if name:
            yield name, path


def is_module(name: str) -> bool:
    path = PACKAGE.joinpath(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


def imports(source: str, module: str, is_package: bool = False) -> Iterator[tuple[int, str]]:
    """Line and full dotted name of everything that `source` imports."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name != "coreai_recipes":  # without a name it only says where the package lies
                    yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                here = ["coreai_recipes", *module.split(".")]
                parents = here[: len(here) - node.level + is_package]
                base = ".".join([*parents, base] if base else parents)
            for alias in node.names:
                whole = f"{base}.{alias.name}"
                is_ours = whole.startswith("coreai_recipes.") and is_module(whole.removeprefix("coreai_recipes."))
                is_theirs = base == "coremltools"  # `from coremltools import proto`
                yield node.lineno, whole if is_ours or is_theirs else base


def edges() -> set[tuple[str, str]]:
    """Which room imports which: `python tests/test_imports.py` prints how many."""
    found = set()
    for module, path in modules():
        for _, imported in imports(path.read_text(), module, path.name == "__init__.py"):
            room, _, _ = imported.removeprefix("coreai_recipes.").partition(".")
            if imported.startswith("coreai_recipes.") and room != module.partition(".")[0]:
                found.add((module.partition(".")[0], room))
    return found


def is_within(name: str, area: str) -> bool:
    return name == area or name.startswith(area + ".")


def allowed_to(room: str) -> set[str]:
    below = list(ROOMS)[list(ROOMS).index(room) + 1 :]
    return set(below) if "*" in ROOMS[room] else ROOMS[room]


def why_forbidden(module: str, imported: str) -> str | None:
    """What is wrong when `module` of ours imports `imported`, or None."""
    room = module.partition(".")[0]
    if is_within(imported, "coreai_recipes"):
        theirs = imported.removeprefix("coreai_recipes").removeprefix(".")
        if not theirs:
            return f"{room} imports a name from the package's front page, which stands for every room; import the room"
        ours_and_theirs = [name.split(".")[1:2] for name in (module, theirs)]
        if room == "targets" and is_within(theirs, room) and ours_and_theirs[0] != ours_and_theirs[1]:
            return f"{'.'.join(module.split('.')[:2])} and {'.'.join(theirs.split('.')[:2])} know nothing of each other"
        if is_within(theirs, room) or any(is_within(theirs, allowed) for allowed in allowed_to(room)):
            return None
        return (
            f"{room} must not import {theirs}; it may import {', '.join(sorted(allowed_to(room))) or 'nothing of ours'}"
        )
    area = max((known for known in KNOWN_TO if is_within(imported, known)), key=len, default=None)
    if area and room not in KNOWN_TO[area]:
        return f"{room} must not import {imported}; {area} is known to {', '.join(sorted(KNOWN_TO[area]))} only"
    return None


def test_every_module_is_in_a_room() -> None:
    homeless = {name.partition(".")[0] for name, _ in modules()} - ROOMS.keys()
    assert not homeless, f"give {', '.join(sorted(homeless))} a row in ROOMS, below everything that imports it"


def test_the_rooms_are_listed_top_to_bottom() -> None:
    listed = list(ROOMS)
    for room in ROOMS:
        above = [other for other in allowed_to(room) if listed.index(other.partition(".")[0]) <= listed.index(room)]
        assert not above, f"{room} is listed below {', '.join(above)}, which it may import"


def test_contributing_has_a_row_for_each_room() -> None:
    text = (PACKAGE.parent / "CONTRIBUTING.md").read_text().split("## The rooms")[1].split("\n## ")[0]
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    listed = {word.strip().strip("`") for row in rows for word in row.split(",")}
    assert listed == {f"{room}/" if (PACKAGE / room).is_dir() else room for room in ROOMS}


@pytest.mark.parametrize(("module", "path"), [pytest.param(*each, id=each[0]) for each in modules()])
def test_no_arrow_points_up(module: str, path: Path) -> None:
    if module.partition(".")[0] not in ROOMS:
        pytest.fail("not in a room")
    is_package = path.name == "__init__.py"
    found = [
        f"{path.name}:{line}: {reason}"
        for line, imported in imports(path.read_text(), module, is_package)
        if (reason := why_forbidden(module, imported))
    ]
    assert not found, "\n".join(found)


def test_no_two_modules_import_each_other_at_the_top() -> None:
    """Cycles inside a room: only imports outside functions and TYPE_CHECKING run when a module is loaded."""
    arrows: dict[str, set[str]] = {}
    for module, path in modules():
        tree = ast.parse(path.read_text())
        top = ast.Module([node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)], [])
        named = {name for _, name in imports(ast.unparse(top), module, path.name == "__init__.py")}
        ours = {name.removeprefix("coreai_recipes.") for name in named if name.startswith("coreai_recipes.")}
        arrows[module] = ours - {module}
    TopologicalSorter(arrows).prepare()  # raises CycleError with the cycle


@pytest.mark.parametrize(
    ("module", "line", "reason"),
    [
        ("recipe.loader", "from coreai_recipes.errors import RecipeError", None),
        ("recipe.loader", "from coreai_recipes.recipe import schema", None),
        ("recipe.loader", "from . import schema", None),
        ("recipe.loader", "from ..errors import RecipeError", None),
        ("recipe.loader", "def f():\n    from coreai_recipes.decoder import model", "recipe must not import decoder"),
        ("recipe.loader", "from ..decoder import Decoder", "recipe must not import decoder"),
        ("recipe.loader", "from coreai_recipes import decoder", "recipe must not import decoder"),
        ("recipe.loader", "from coreai_recipes import load_recipe", "recipe imports a name from the package's front"),
        ("verification.stages", "import coreai_recipes.targets.coreml.linker", "verification must not import targets"),
        ("checkpoint.hub", "from coreai_recipes.recipe.yaml_reader import read_yaml", None),
        ("checkpoint.hub", "from coreai_recipes.recipe.schema import Recipe", "checkpoint must not import recipe"),
        ("targets.coreml.convert", "import coremltools as ct", None),
        ("export.functions", "import coremltools as ct", "export must not import coremltools"),
        ("export.functions", "from coreai_recipes.targets.coreml import linker", "export must not import targets"),
        ("targets.coreml.linker", "from coreai_recipes.targets.coreml import mil", None),
        ("targets.coreml.linker", "import coreai_recipes.targets.coreai.asset", "targets.coreml and targets.coreai"),
        ("evaluate.package_reader", "from coreai_recipes.protobuf import MIL_pb2", None),
        ("decoder.model", "import transformers", "transformers is known to"),
        ("decoder.model", "import torch", None),
    ],
)  # fmt: skip
def test_the_rule_fires_where_it_must_and_nowhere_else(module: str, line: str, reason: str | None) -> None:
    ((_, imported),) = imports(line, module)
    found = why_forbidden(module, imported)
    assert found is None if reason is None else reason in (found or "")


LIGHT = ["", ".errors", ".manifest.staging", ".recipe", ".bundle", ".commands", ".cli"]


@pytest.mark.parametrize("module", [f"coreai_recipes{name}" for name in LIGHT])
def test_the_command_line_starts_without_heavy_imports(module: str) -> None:
    code = f"import sys, {module}; print(*sorted({HEAVY} & sys.modules.keys()))"
    environment_path = [str(PACKAGE.parent), *sys.path]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {environment_path!r}; {code}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout.strip(), done.returncode) == ("", 0), done.stderr


def test_a_bundle_opens_without_what_builds_one(tiny_bundle: Path) -> None:
    """Opening once held the manifest against the recipe, and so took torch, the exporter's modules and the language."""
    code = f"import sys; from coreai_recipes.bundle import Bundle; Bundle.open({str(tiny_bundle)!r})"
    rooms = {f"coreai_recipes.{room}" for room in ("export", "recipe", "decoder", "primitives", "planning", "storage")}
    code += f"; print(*sorted({HEAVY | rooms | {'yaml'}} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent)
    assert done.stdout == "\n"


def test_a_decoder_on_the_meta_device_takes_no_compiler_of_torch() -> None:
    """nn.Embedding once drew its table at random, and brought 800 modules with it: 0.8 s of every Gemma 4 command."""
    build = "import sys, coreai_recipes as ours; ours.build_decoder(ours.load_recipe('gemma4'))"
    code = f"{build}; print('torch._dynamo' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent)
    assert done.stdout == "False\n"


if __name__ == "__main__":
    lines = sum(len(path.read_text().splitlines()) for _, path in modules())
    loose = sum(path.suffix == ".py" and path.stem != "__init__" for path in PACKAGE.iterdir())
    print(f"{len(ROOMS)} rooms, {loose} of them loose modules, {len(edges())} edges, {lines} lines")
