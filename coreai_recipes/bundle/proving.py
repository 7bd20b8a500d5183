"""Proving a bundle, or a recipe before it is built, equal to transformers."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from coreai_recipes.bundle.opened import Bundle
from coreai_recipes.bundle.origin import Held, hold_origin
from coreai_recipes.bundle.sources import find_checkpoint, find_draft
from coreai_recipes.errors import BundleError, UserError
from coreai_recipes.manifest.reading import MANIFEST
from coreai_recipes.manifest.staging import recover
from coreai_recipes.recipe import Recipe

if TYPE_CHECKING:
    from coreai_recipes.checkpoint.base import Checkpoint
    from coreai_recipes.export.reporting import Progress
    from coreai_recipes.verification.report import Report
    from coreai_recipes.verification.subject import Runtime


def verify(
    target: Bundle | Recipe | str | Path,
    checkpoint: "Checkpoint | str | Path | None" = None,
    *,
    draft: "Checkpoint | str | Path | None" = None,
    stages: Sequence[str] | None = None,
    require: Sequence[str] = (),
    runtime: "Runtime" = "evaluator",
    random: bool = False,
    progress: "Progress | None" = None,
) -> "Report":
    """Prove a bundle, or a recipe before it is built, equal to transformers, stage by stage (`verification.run`).

    With `random` the weights are random ones in the recipe's shape, one layer of each kind where all would take long.
    Raises UserError when the bundle was modified since it was built, or the checkpoint does not fit.
    """
    from coreai_recipes.storage.matching import load_held
    from coreai_recipes.verification.run import run_stages

    if isinstance(target, str | Path):
        recover(Path(target))
        target = Bundle.open(target) if os.path.exists(Path(target) / MANIFEST) else load_held(target)
    if random:
        return _verify_random(target, (checkpoint, draft), stages, require, progress)
    wants_draft = stages is None or "draft" in (*stages, *require)
    if isinstance(target, Bundle):
        package: Path | None = target.package
        recipe, held, draft_held = _hold_bundle(target, checkpoint, draft, wants_draft)
    else:
        package = None
        recipe, held, draft_held = _hold_recipe(target, checkpoint, draft, wants_draft)

    def check(step: str, done: int, total: int) -> None:
        held.check()
        draft_held.check()
        if progress is not None:
            progress(step, done, total)

    try:
        report = run_stages(
            recipe,
            held.source,
            package,
            draft=draft_held.source,
            stages=stages,
            require=require,
            runtime=runtime,
            on_progress=check,
            missing=held.reason,
            missing_draft=draft_held.reason,
        )
    except UserError:
        held.finish()  # what is wrong with another checkpoint says nothing of this bundle
        draft_held.finish()
        raise
    held.finish()
    draft_held.finish()
    return report


def _hold_bundle(
    bundle: Bundle,
    checkpoint: "Checkpoint | str | Path | None",
    draft: "Checkpoint | str | Path | None",
    wants_draft: bool,
) -> tuple[Recipe, Held, Held]:
    """The recipe of a bundle that is as it was built, and its checkpoints."""
    bundle.check_files()
    bundle.check_ends()
    bundle.check_package()
    recipe, origin = bundle.recipe, bundle.described.checkpoint
    if draft is not None and recipe.draft is None:
        raise BundleError(f"{bundle.path}: was built without a draft: build it again with --draft {draft}")
    name, reference = bundle.described.name, recipe.reference
    named = None if reference is None else reference.checkpoint
    held = hold_origin(origin, name, checkpoint, named, "--checkpoint SRC", bundle.path)
    if recipe.draft is None or origin.draft is None or not wants_draft:
        return recipe, held, Held()
    of_draft = hold_origin(
        origin.draft, f"the draft of {name}", draft, recipe.draft.reference.checkpoint, "--draft SRC"
    )
    return recipe, held, of_draft


def _hold_recipe(
    recipe: Recipe,
    checkpoint: "Checkpoint | str | Path | None",
    draft: "Checkpoint | str | Path | None",
    wants_draft: bool,
) -> tuple[Recipe, Held, Held]:
    """A recipe before it is built, with the checkpoints that are given or that it names."""
    names_one = recipe.reference is not None and recipe.reference.checkpoint is not None
    source = find_checkpoint(recipe, checkpoint) if checkpoint is not None or names_one else None
    names_draft = recipe.draft is not None and recipe.draft.reference.checkpoint is not None
    draft_source = None
    if wants_draft and (draft is not None or names_draft):
        recipe, draft_source = find_draft(recipe, draft)
    return recipe, Held(source), Held(draft_source)


def _verify_random(
    target: Bundle | Recipe,
    given: "tuple[Checkpoint | str | Path | None, ...]",
    stages: Sequence[str] | None,
    require: Sequence[str],
    progress: "Progress | None",
) -> "Report":
    if isinstance(target, Bundle):
        raise UserError(f"--random needs a recipe, and {target.path} is a bundle, which has weights")
    if any(source is not None for source in given):
        raise UserError("--random creates the weights: leave out --checkpoint and --draft")
    from coreai_recipes.verification.random_checkpoint import RandomCheckpoint, make_affordable
    from coreai_recipes.verification.run import run_stages

    recipe, layers = make_affordable(target)
    source = RandomCheckpoint(recipe)
    report = run_stages(recipe, source, None, stages=stages, require=require, on_progress=progress)
    return report.with_detail({"weights": source.source, "layers": layers})
