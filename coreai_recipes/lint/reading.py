"""What there is to lint: a package of either format, a model's own file, or a bundle with what else a host reads."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from coreai_recipes.aimodel.folder import PROGRAM, SUFFIX
from coreai_recipes.errors import BundleError
from coreai_recipes.evaluate.errors import EvaluationError
from coreai_recipes.evaluate.model_file import MOST_MODEL_BYTES, find_model_file, parse_program, read_file
from coreai_recipes.lint.asset import UNREAD, is_readable, read_asset
from coreai_recipes.lint.program import Program, read_program
from coreai_recipes.lint.small_constants import check_weights, peek_into
from coreai_recipes.manifest.audit import Audit, read_audit
from coreai_recipes.manifest.files import check_relative, read_regular
from coreai_recipes.manifest.reading import MANIFEST, parse_json, read_manifest, typed
from coreai_recipes.manifest.schema import Manifest

MOST_TOKENIZER_BYTES = 64 << 20
MOST_FILES = 10_000


@dataclass
class LintInput:
    """What rules look at. `files` are sizes of weight files by their place; what is None is not there to be looked at.

    Attributes:
        name: how messages call it.
        format: of its packages.
        units, device, allow: the compute units and the chip that it is meant for and what is let pass there, where a
            recipe says so.
        manifest: of a bundle, its JSON.
        tokenizer: of a bundle, the JSON of each of its tokenizer's files, and the chat template's text.
        unread: why `programs` are not the saved ones, where they are not.
        is_for_engine: whether the Neural Engine is meant to run it, as far as that is said.
    """

    name: str
    programs: list[Program]
    files: dict[str, int] = field(default_factory=dict)
    manifest: dict[str, Any] | None = None
    tokenizer: dict[str, Any] | None = None
    audit: Audit | None = None
    units: str | None = None
    device: str | None = None
    allow: dict[str, str] = field(default_factory=dict)
    format: Literal["coreml", "coreai"] = "coreml"
    unread: str | None = None
    is_for_engine: bool = True


def is_saved(path: Path) -> bool:
    """Whether the path is a package, a model's file or a bundle; anything else may be a recipe."""
    suffixes = (".mlpackage", ".mlmodel", ".mlmodelc", SUFFIX)
    return path.suffix in suffixes or bool({"Manifest.json", MANIFEST} & _names(path))


def is_bundle(path: Path) -> bool:
    """Whether a folder is a bundle."""
    return MANIFEST in _names(path)


def open_subject(path: Path) -> LintInput:
    """What lies at `path`. Raises UserError with one sentence for what is none of them, or damaged."""
    if is_bundle(path):
        return _open_bundle(path)
    if path.suffix == ".mlmodelc":
        raise EvaluationError(f"{path}: is compiled; lint the .mlpackage or .mlmodel that it was compiled from")
    if path.suffix == ".mlmodel":
        size = len(content := _read_model(path, path.parent))
        return LintInput(path.name, [_parse(content, path)], {path.name: size})
    return open_package(path)


def open_package(path: Path, is_whole: bool = True) -> LintInput:
    """The package at `path`. Its weights must be there, unless it is not whole yet. Raises UserError for an .aimodel
    where nothing is installed that reads it."""
    if path.suffix == SUFFIX:
        program = read_asset(path)
        return LintInput(path.name, [program], {PROGRAM: (path / PROGRAM).stat().st_size}, format="coreai")
    file = find_model_file(path)
    program = _parse(_read_model(file, path), path)
    if is_whole:
        check_weights(program, file, path)
    for function in program.functions:
        function.peek = peek_into(file, path)
    return LintInput(path.name, [program], weight_files(path))


def _open_bundle(folder: Path) -> LintInput:
    """A bundle. Without what reads .aimodels it has no programs, and says why."""
    manifest = read_manifest(folder)
    described = typed(Manifest, manifest, f"{folder}: {MANIFEST}")
    subject = LintInput(folder.name, [], manifest=manifest, tokenizer=tokenizer_files(folder), audit=read_audit(folder))
    subject.format = described.package_format
    if subject.format == "coreai" and not is_readable():
        subject.unread = UNREAD
    for program in described.programs:
        package = folder / program.file
        if not package.resolve().is_relative_to(folder.resolve()):
            raise BundleError(f"{package}: is a link to a place outside the bundle")
        if subject.format == "coreai":
            prefix = f"{program.file}/"
            subject.files |= {name: file.bytes for name, file in described.files.items() if name.startswith(prefix)}
            subject.programs += [read_asset(package)] if subject.unread is None else []
            continue
        opened = open_package(package)
        subject.programs += opened.programs
        subject.files |= {f"{program.file}/{name}": size for name, size in opened.files.items()}
    return subject


def _names(path: Path) -> set[str]:
    """Names in a folder as they are written: one that does not tell capitals would find manifest.json in a package."""
    try:
        return set(os.listdir(path)) if path.is_dir() else set()
    except OSError as error:
        raise EvaluationError(f"{path}: cannot be read: {(error.strerror or str(error)).lower()}") from None


def _read_model(file: Path, within: Path) -> bytes:
    return read_file(file, MOST_MODEL_BYTES, within)


def _parse(content: bytes, path: Path) -> Program:
    model = parse_program(content, path, path, "only ML Programs can be linted")
    try:
        return read_program(model)
    except EvaluationError as error:
        raise EvaluationError(f"{path}: {error}") from None


def weight_files(package: Path) -> dict[str, int]:
    """Sizes of the files of weights below a package, by their place in it. Links are not followed."""
    found: dict[str, int] = {}
    for folder, _, names in os.walk(package):
        for name in names:
            path = Path(folder, name)
            if name.endswith(".bin") and not path.is_symlink():
                found[path.relative_to(package).as_posix()] = path.stat().st_size
            if len(found) > MOST_FILES:
                raise EvaluationError(f"{package}: has more than {MOST_FILES:,} files of weights")
    return found


def tokenizer_files(folder: Path) -> dict[str, Any]:
    """tokenizer.json, tokenizer_config.json and the chat template of a bundle, where they are."""
    found: dict[str, Any] = {}
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja"):
        path = folder / check_relative(name)
        try:
            content = read_regular(path, MOST_TOKENIZER_BYTES, within=folder)
        except (FileNotFoundError, NotADirectoryError):
            continue
        found[name] = content.decode("utf-8", "replace") if name.endswith(".jinja") else parse_json(content, path, name)
    return found
