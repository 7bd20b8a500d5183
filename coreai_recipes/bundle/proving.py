"""Proving a bundle, or a recipe before it is built, equal to transformers."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from coreai_recipes.bundle.adapting import hold_adapters, hold_unmerged, open_unmerged
from coreai_recipes.bundle.opened import Bundle
from coreai_recipes.bundle.origin import Held, hold_origin
from coreai_recipes.bundle.sources import OPTIONS, find_sources
from coreai_recipes.errors import BundleError, UserError
from coreai_recipes.manifest.reading import MANIFEST
from coreai_recipes.manifest.staging import recover
from coreai_recipes.recipe import Recipe
from coreai_recipes.recipe.schema import DRAFT, MODEL

if TYPE_CHECKING:
    from coreai_recipes.checkpoint.adapted import Unmerged
    from coreai_recipes.checkpoint.base import Checkpoint
    from coreai_recipes.export.reporting import Progress
    from coreai_recipes.verification.report import Report
    from coreai_recipes.verification.subject import Runtime

    Given = Mapping[str, Checkpoint | str | Path | None]  # checkpoints by stack


def verify(
    target: Bundle | Recipe | str | Path,
    checkpoint: "Checkpoint | str | Path | None" = None,
    *,
    draft: "Checkpoint | str | Path | None" = None,
    stages: Sequence[str] | None = None,
    require: Sequence[str] = (),
    runtime: str | None = None,
    random: bool = False,
    adapters: Mapping[str, str] | None = None,
    states: bool = False,
    progress: "Progress | None" = None,
) -> "Report":
    """Prove a bundle, or a recipe before it is built, equal to transformers, stage by stage (`verification.run`).

    `adapters` says by name where those of the recipe lie. With `random` the weights are random ones in the recipe's
    shape, one layer of each kind where all would take long. With `states` what recurrences lose after 500 and 2,000
    tokens is measured in models of any size.
    Raises UserError when the bundle was modified since it was built, or the checkpoint does not fit.
    """
    from coreai_recipes.storage.matching import load_held
    from coreai_recipes.verification.run import run_stages

    if isinstance(target, str | Path):
        recover(Path(target))
        target = Bundle.open(target) if os.path.exists(Path(target) / MANIFEST) else load_held(target)
    if random:
        return _verify_random(target, (checkpoint, draft), stages, require, progress)
    chosen = _runtime(target, runtime)
    given = {MODEL: checkpoint, DRAFT: draft}
    wanted = [key for key in given if key == MODEL or stages is None or key in (*stages, *require)]
    if isinstance(target, Bundle):
        package: Path | None = target.package
        recipe, held, beside, why = _hold_bundle(target, given, wanted, adapters)
    else:
        package, why = None, None
        recipe, held, beside = _hold_recipe(target, given, wanted, adapters)

    def check(step: str, done: int, total: int) -> None:
        for each in held.values():
            each.check()
        if progress is not None:
            progress(step, done, total)

    def finish() -> None:
        for each in held.values():
            each.finish()

    sources = {key: each.source for key, each in held.items() if each.source is not None}
    missing = {key: each.reason for key, each in held.items() if each.reason is not None}
    try:
        report = run_stages(
            recipe,
            sources,
            package,
            stages=stages,
            require=require,
            runtime=chosen,
            on_progress=check,
            missing=missing,
            all_lengths=states,
            adapters=beside,
            no_adapters=why,
        )
    except UserError:
        finish()  # what is wrong with another checkpoint says nothing of this bundle
        raise
    finish()
    return report


def _runtime(target: Bundle | Recipe, asked: str | None) -> "Runtime":
    """What runs the package: what was asked for, else what does so on every machine."""
    from coreai_recipes.running.program import choose_runtime, proving_runtime

    package_format = (target.recipe if isinstance(target, Bundle) else target).export.format
    return proving_runtime(package_format) if asked is None else choose_runtime(asked, package_format)


def _hold_bundle(
    bundle: Bundle, given: "Given", wanted: Sequence[str], adapters: Mapping[str, str] | None
) -> "tuple[Recipe, dict[str, Held], dict[str, Unmerged], str | None]":
    """The recipe of a bundle that is as it was built, the checkpoints of those of its stacks that are wanted, and the
    adapters that are not merged, or why they are not there."""
    bundle.check_files()
    bundle.check_ends()
    bundle.check_package()
    recipe, origin, name = bundle.recipe, bundle.described.checkpoint, bundle.described.name
    for key, source in given.items():
        if source is not None and key not in recipe.stacks:
            raise BundleError(f"{bundle.path}: was built without a {key}: build it again with --{key} {source}")
    # the model's checkpoint has its tokenizer, which lies in the bundle
    built = {MODEL: (origin, name, bundle.path), DRAFT: (origin.draft, f"the draft of {name}", None)}
    held = {}
    for key, stack in recipe.stacks.items():
        was, called, folder = built[key]
        if was is not None and key in wanted:
            named = None if stack.reference is None else stack.reference.checkpoint
            held[key] = hold_origin(was, called, given[key], named, OPTIONS[key], folder)
    if MODEL not in held:
        return recipe, held, {}, None
    held[MODEL] = hold_adapters(held[MODEL], recipe, name, origin.adapters, adapters)
    return recipe, held, *hold_unmerged(held[MODEL], recipe, name, origin.adapters, adapters)


def _hold_recipe(
    recipe: Recipe, given: "Given", wanted: Sequence[str], adapters: Mapping[str, str] | None
) -> "tuple[Recipe, dict[str, Held], dict[str, Unmerged]]":
    """A recipe before it is built, with the checkpoints that are given or that it names, and the adapters that are not
    merged."""
    references = {key: stack.reference for key, stack in recipe.stacks.items()}
    named = [key for key, said in references.items() if said is not None and said.checkpoint is not None]
    keys = [key for key in wanted if key in named or given[key] is not None]
    from coreai_recipes.storage.source import with_source, without_source

    recipe, sources = find_sources(recipe, given, keys, adapters)
    recipe = with_source(recipe, sources)[0] if MODEL in sources else without_source(recipe)
    beside = open_unmerged(recipe, sources[MODEL], adapters) if MODEL in sources else {}
    return recipe, {key: Held(source) for key, source in sources.items()}, beside


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
    from coreai_recipes.storage.source import without_source
    from coreai_recipes.verification.random_checkpoint import RandomCheckpoint, make_affordable
    from coreai_recipes.verification.run import run_stages

    recipe, layers = make_affordable(without_source(target))
    source = RandomCheckpoint(recipe)
    report = run_stages(recipe, source, None, stages=stages, require=require, on_progress=progress)
    return report.with_detail({"weights": source.source, "layers": layers})
