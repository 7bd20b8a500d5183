"""What transformers' source knows of the families' configs: `make known` reads it anew, without importing it.

A field is known to a model_type when its name occurs in the modules that define its config and its model: as a field or
an attribute_map key of a config class, as an attribute, or as a string, which is how getattr and keys name it. The
modules of other model_types whose config class it inherits from count, and `shared` ones, which take any config.

    python tests/known_fields.py    writes recipe/importing/known/VERSION.json
"""

import ast
import json
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from coreai_recipes.recipe.importing.family import family_names
from coreai_recipes.recipe.importing.known import FOLDER

SHARED = (
    "modeling_rope_utils",
    "masking_utils",
    "cache_utils",
    "activations",
    "integrations/heterogeneity/configuration_utils",
)
BASE = "configuration_utils"  # of PreTrainedConfig, whose own fields every config has
ROPE = "modeling_rope_utils"


@cache
def root() -> Path:
    spec = find_spec("transformers")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


@cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@cache
def config_classes() -> Mapping[str, tuple[Path, ast.ClassDef]]:
    """Every class of transformers' configuration files, by name."""
    paths = [root() / f"{BASE}.py", *sorted(root().glob("models/*/configuration_*.py"))]
    return {node.name: (path, node) for path in paths for node in parse(path).body if isinstance(node, ast.ClassDef)}


def fields_of(node: ast.ClassDef) -> Iterator[str]:
    """What a config class declares: annotated attributes that are none of the class's own, attribute_map's keys, and
    the arguments of an __init__ that it writes itself."""
    for entry in node.body:
        if isinstance(entry, ast.AnnAssign) and isinstance(entry.target, ast.Name):
            if "ClassVar" not in ast.unparse(entry.annotation):
                yield entry.target.id
            elif entry.target.id == "attribute_map" and entry.value is not None:
                yield from ast.literal_eval(entry.value)
        elif isinstance(entry, ast.Assign) and ast.unparse(entry.targets[0]) == "attribute_map":
            yield from ast.literal_eval(entry.value)
        elif isinstance(entry, ast.FunctionDef) and entry.name == "__init__":
            yield from (argument.arg for argument in (*entry.args.args[1:], *entry.args.kwonlyargs))


def names_in(tree: ast.AST) -> Iterator[str]:
    """Attributes, and strings that could name one."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isidentifier():
            yield node.value
        elif isinstance(node, ast.ClassDef):
            yield from fields_of(node)


def model_types() -> Mapping[str, str]:
    """The config class of each model_type."""
    found = {}
    for name, (_, node) in config_classes().items():
        for entry in node.body:
            targets = entry.targets if isinstance(entry, ast.Assign) else [getattr(entry, "target", None)]
            if any(isinstance(target, ast.Name) and target.id == "model_type" for target in targets):
                found[ast.literal_eval(entry.value)] = name  # type: ignore[attr-defined]
    return found


def folders_of(model_type: str) -> list[Path]:
    """Where a model_type's config, those that it inherits from and its models are defined: the last may be another
    one's, as InternLM 3 is a LlamaForCausalLM."""
    found = list(dict.fromkeys(_config_folders(model_types().get(model_type) or _class_of_another(model_type))))
    has_own = any(path.name.startswith("modeling") for folder in found for path in modules_of(folder))
    return found if has_own else [*found, *_model_folders(model_type)]


def _class_of_another(model_type: str) -> str:
    """The config class of a model_type that has none of its own: GPT-SW3 has GPT-2's."""
    auto = parse(root() / "models/auto/configuration_auto.py")
    mappings = (node for node in ast.walk(auto) if isinstance(node, ast.Dict))
    pairs = ((key, value) for node in mappings for key, value in zip(node.keys, node.values, strict=True))
    found = (value for key, value in pairs if isinstance(key, ast.Constant) and key.value == model_type)
    return str(ast.literal_eval(next(found)))


def _config_folders(class_name: str) -> Iterator[Path]:
    if class_name in config_classes():
        path, node = config_classes()[class_name]
        if path.parent != root():
            yield path.parent
        for base in node.bases:
            yield from _config_folders(ast.unparse(base))


def _model_folders(model_type: str) -> Iterator[Path]:
    names = {name for mapping in _mappings() for key, found in mapping if key == model_type for name in found}
    for path in sorted(root().glob("models/*/modeling_*.py")):
        if any(f"class {name}(" in path.read_text() for name in names):
            yield path.parent


@cache
def _mappings() -> list[list[tuple[str, list[str]]]]:
    """modeling_auto's lists of model_types and the classes of each."""
    tree = parse(root() / "models/auto/modeling_auto.py")
    return [
        [
            (entry.elts[0].value, [leaf.value for leaf in ast.walk(entry.elts[1]) if isinstance(leaf, ast.Constant)])
            for entry in node.args[0].elts
            if isinstance(entry, ast.Tuple) and isinstance(entry.elts[0], ast.Constant)
        ]
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.List)
    ]


def classes() -> dict[str, str]:
    """The family that a class of a causal language model is of: the first that has it, but its own before others."""
    found: dict[str, str] = {}
    for mapping in _mappings():
        for model_type, names in mapping:
            for name in names:
                if name.endswith("ForCausalLM") and model_type in family_names():
                    own = f"{model_type.replace('_', '')}forcausallm" == name.lower()
                    found[name] = model_type if own else found.get(name, model_type)
    return dict(sorted(found.items()))


def modules_of(folder: Path) -> list[Path]:
    return [path for kind in ("configuration", "modeling") for path in sorted(folder.glob(f"{kind}_*.py"))]


def rope_keys() -> dict[str, list[str]]:
    """The rotary parameters that the function of each rope_type reads."""
    functions = {node.name: node for node in parse(root() / f"{ROPE}.py").body if isinstance(node, ast.FunctionDef)}
    table = next(
        node.value
        for node in parse(root() / f"{ROPE}.py").body
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "ROPE_INIT_FUNCTIONS"
    )
    assert isinstance(table, ast.Dict)
    return {
        ast.literal_eval(key): sorted(set(_keys_read(functions[ast.unparse(value)])))  # type: ignore[arg-type]
        for key, value in zip(table.keys, table.values, strict=True)
    }


def _keys_read(function: ast.FunctionDef) -> Iterator[str]:
    for node in ast.walk(function):
        key: ast.AST | None = None
        if isinstance(node, ast.Subscript) and ast.unparse(node.value) == "rope_parameters_dict":
            key = node.slice
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "rope_parameters_dict.get":
            key = node.args[0]
        if isinstance(key, ast.Constant):
            yield key.value


def read_source() -> dict[str, Any]:
    """The data file's content, each list of names as one line of text."""
    shared = {name for module in SHARED for name in names_in(parse(root() / f"{module}.py"))}
    shared |= set(fields_of(config_classes()["PreTrainedConfig"][1]))
    by_type = {name: folders_of(name) for name in family_names()}
    modules = {
        folder.name: {name for path in modules_of(folder) for name in names_in(parse(path))}
        for folders in by_type.values()
        for folder in folders
    }
    every = {name for _, node in config_classes().values() for name in fields_of(node)}
    return {
        "shared": " ".join(sorted(shared)),
        "modules": {name: " ".join(sorted(names - shared)) for name, names in sorted(modules.items())},
        "model_types": {name: " ".join(folder.name for folder in by_type[name]) for name in sorted(by_type)},
        "every_config": " ".join(sorted(every)),
        "every_type": " ".join(sorted(model_types())),
        "rope": {name: " ".join(keys) for name, keys in rope_keys().items()},
        "classes": classes(),
    }


def data_file() -> Path:
    return FOLDER / f"{version('transformers')}.json"


if __name__ == "__main__":
    data_file().parent.mkdir(exist_ok=True)
    data_file().write_text(json.dumps(read_source(), indent=1) + "\n")
