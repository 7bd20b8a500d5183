"""What `recipe audit` does with its words: which bundles and recipes, and what is left behind."""

import os
from collections.abc import Sequence
from pathlib import Path

from coreai_recipes.audit.auditing import Audited, Progress, audit_bundle, audit_recipe
from coreai_recipes.audit.keeping import apply, save
from coreai_recipes.audit.prompts import BUILT_IN, read_prompts
from coreai_recipes.bundle import Bundle
from coreai_recipes.errors import UserError
from coreai_recipes.evaluate.habits import habits_without
from coreai_recipes.manifest.reading import MANIFEST
from coreai_recipes.manifest.staging import recover
from coreai_recipes.recipe import load_recipe


def run_audits(
    targets: Sequence[str],
    checkpoint: str | None,
    prompts: Path | None,
    without: Sequence[str],
    apply_to: Path | None,
    saves: bool,
    progress: Progress | None,
    overrides: Sequence[str] = (),
) -> list[Audited]:
    """Audit each target, save what was found in those that are bundles, and write a recipe where one is asked for.

    Raises UserError for words that cannot be meant, before anything is run.
    """
    habits_without(without)
    if apply_to is not None and len(targets) > 1:
        raise UserError(f"--apply {apply_to}: one audit writes one recipe, but {len(targets)} were requested")
    if apply_to is not None and os.path.lexists(apply_to):
        raise UserError(f"{apply_to}: already exists; choose another name with --apply")
    texts = BUILT_IN if prompts is None else read_prompts(prompts)
    found = []
    for target in targets:
        recover(Path(target))
        if os.path.exists(Path(target) / MANIFEST):
            if overrides:
                raise UserError(f"{target}: --set applies to recipes, and this is already built")
            bundle = Bundle.open(target)
            _check_format(target, bundle.described.package_format)
            audited = audit_bundle(bundle, texts, without, progress)
            if saves:
                save(bundle, audited)
        else:
            recipe = load_recipe(target, overrides)
            _check_format(target, recipe.export.format)
            audited = audit_recipe(recipe, checkpoint, texts, without, progress)
        if apply_to is not None:
            apply(audited, apply_to)
        found.append(audited)
    return found


def _check_format(target: str, package_format: str) -> None:
    """Raise UserError for what shows no value inside a layer, before it is built or run."""
    if package_format == "coreai":
        raise UserError(
            f"{target}: is in Core AI's format, whose runtime shows no value inside a layer: audit Core ML's package "
            "of the same recipe, which computes the same (--set export.format=coreml)"
        )
