"""What an audit leaves behind: audit.json in the bundle, and a recipe with what it found."""

import hashlib
import json
import os
import shutil
import textwrap
from pathlib import Path

from coreai_recipes.audit.auditing import Audited
from coreai_recipes.bundle import Bundle
from coreai_recipes.errors import UserError
from coreai_recipes.manifest.audit import AUDIT, audit_text
from coreai_recipes.manifest.reading import MANIFEST
from coreai_recipes.manifest.staging import staged_folder
from coreai_recipes.recipe.importing.writing import write_recipe


def save(bundle: Bundle, audited: Audited) -> None:
    """Put audit.json into the bundle, listed among its files: in one step, the rest of it as it is.

    Raises BundleError as a build does where the folder cannot be written to.
    """
    content = audit_text(audited.to_audit()).encode()
    sealed = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    files = dict(sorted({**bundle.manifest["files"], AUDIT: sealed}.items()))
    source = Path(os.path.realpath(bundle.path))
    with staged_folder(bundle.path) as folder:
        for path in sorted(source.rglob("*")):
            place = folder / path.relative_to(source)
            if path.is_dir() and not path.is_symlink():
                place.mkdir(exist_ok=True)
            elif path.relative_to(source).as_posix() not in (AUDIT, MANIFEST):
                _link(path, place)
        (folder / AUDIT).write_bytes(content)
        (folder / MANIFEST).write_text(json.dumps({**bundle.manifest, "files": files}, indent=2) + "\n")


def _link(path: Path, place: Path) -> None:
    """The same file at another place; a copy where the file system has no hard links."""
    try:
        os.link(path, place, follow_symlinks=False)
    except OSError:
        shutil.copy2(path, place, follow_symlinks=False)


def apply(audited: Audited, path: Path) -> None:
    """Write the recipe with the scales found. Raises UserError where there is a file or none can be written."""
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(applied_text(audited))
    except FileExistsError:
        raise UserError(f"{path}: already exists; choose another name with --apply") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {(error.strerror or str(error)).lower()}") from None


def applied_text(audited: Audited) -> str:
    """The recipe's text, below what was decided."""
    export = audited.recipe.export.model_copy(update=audited.scales)
    heading = [f"By `recipe audit`, {len(audited.prompts)} prompts:"]
    for decision in audited.decisions():
        heading += textwrap.wrap(decision, 110)
    return write_recipe(audited.recipe.model_copy(update={"export": export}), heading, {})
