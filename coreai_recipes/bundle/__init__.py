"""Building: the steps from a recipe and a checkpoint to a sealed bundle, in order."""

import json
import shutil
from collections.abc import Sequence
from importlib.metadata import version
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coreai_recipes.bundle.opened import Bundle, digest_of
from coreai_recipes.bundle.proving import verify
from coreai_recipes.bundle.sources import find_checkpoint, find_draft
from coreai_recipes.errors import BundleError
from coreai_recipes.manifest.reading import MANIFEST, RECIPE, REPORT, typed
from coreai_recipes.manifest.schema import FORMAT, Manifest
from coreai_recipes.recipe import Recipe, load_recipe, recipe_text
from coreai_recipes.staging import check_place, staged_folder

if TYPE_CHECKING:
    from coreai_recipes.checkpoint.base import Checkpoint
    from coreai_recipes.export.exporter import Exported, Progress
    from coreai_recipes.verification.report import Report

__all__ = ["Bundle", "VerificationError", "build", "find_checkpoint", "find_draft", "verify"]

PACKAGE = "model.mlpackage"
COST = ("flops", "weight_bytes", "state_bytes")  # what the manifest says of each function
PINNED = ("coreai-recipes", "coremltools", "torch")  # what the bytes of a package depend on

Costs = dict[str, dict[str, int]]  # by function and figure


class VerificationError(Exception):
    """A build whose package did not pass; nothing was installed. `report` says at which stage, `notes` what the build
    had decided against the recipe's word."""

    def __init__(self, report: "Report", notes: tuple[str, ...] = ()) -> None:
        super().__init__("verification failed")
        self.report, self.notes = report, notes


def build(
    recipe: Recipe | str | Path,
    checkpoint: "Checkpoint | str | Path | None" = None,
    out: str | Path = "dist",
    *,
    draft: "Checkpoint | str | Path | None" = None,
    overrides: Sequence[str] = (),
    verified: bool = True,
    cached: bool = True,
    progress: "Progress | None" = None,
) -> Bundle:
    """Build `recipe` from `checkpoint` (its reference's, when none is named) into the folder OUT/NAME.

    The weights of a recipe's draft come from `draft`, or its reference's checkpoint; a recipe without one gets the
    draft that the config of `draft` describes.
    Raises UserError for what the user can mend, and VerificationError when the package is not equal to transformers;
    then, and when interrupted or killed, the bundle that stood there before is as it was.
    """
    if not isinstance(recipe, Recipe):
        recipe = load_recipe(recipe, overrides)
    target = Path(out) / recipe.name
    check_place(target)  # what is there may be kept: said before anything is downloaded, let alone converted
    source = find_checkpoint(recipe, checkpoint)
    recipe, draft_source = find_draft(recipe, draft)
    digests = source.start_digests()  # on a thread of its own, while torch is being imported
    draft_digests = None if draft_source is None else draft_source.start_digests()
    from coreai_recipes.contract import hold_manifest
    from coreai_recipes.draft import build_draft
    from coreai_recipes.export.cache import FragmentCache, default_root
    from coreai_recipes.export.exporter import export_package
    from coreai_recipes.filling import bind_decoder, bind_draft, left_out, settle_head
    from coreai_recipes.model import build_decoder, exported_form
    from coreai_recipes.tokenizer.tokens import read_tokens

    recipe, note = settle_head(recipe, source)
    notes: tuple[str, ...] = (note,) if note else ()
    form = exported_form(recipe)
    decoder = build_decoder(recipe, form)
    bindings = bind_decoder(decoder, source)
    source.check_tokenizer(recipe.model.vocab_size)
    drafter = build_draft(recipe, form) if draft_source else None
    if drafter is not None and draft_source is not None:
        bindings |= {f"draft.{name}": binding for name, binding in bind_draft(drafter, draft_source).items()}
    with staged_folder(target) as folder:
        source.write_tokenizer(folder)
        tokens = read_tokens(folder)
        if not tokens.end_tokens:
            notes += (
                "no end token: the checkpoint names none, so an answer ends at --max-tokens or the context's end",
            )
        _check_space(folder, target.parent, sum(2 * prod(binding.shape) for binding in bindings.values()))
        cache = FragmentCache(default_root() if cached else None)
        costs: Costs = {}
        exported = export_package(
            decoder,
            bindings,
            folder / PACKAGE,
            cache,
            progress,
            drafter,
            on_program=lambda package: costs.update(_count_costs(package)),
        )
        (folder / RECIPE).write_text(recipe_text(recipe))
        checkpoint_facts = _origin_of(source, digests.result())
        if draft_source is not None and draft_digests is not None:
            checkpoint_facts["draft"] = _origin_of(draft_source, draft_digests.result())
        manifest = _manifest(recipe, decoder, checkpoint_facts, list(tokens.end_tokens), exported, costs, folder)
        # nothing is installed that could not be opened
        hold_manifest(typed(Manifest, manifest, f"{target}: {MANIFEST}"), recipe, str(target))
        report: dict[str, Any] = {"passed": False, "stages": []}
        if verified:
            from coreai_recipes.verification.run import run_stages

            # a family that the reference cannot take apart skips these stages: that is no proof
            required = (
                ["package"] if recipe.reference is None else ["torch", "package", "package_float16", "package_engine"]
            )
            if draft_source is not None:
                required.append("draft")
            found = run_stages(
                recipe, source, folder / PACKAGE, draft=draft_source, require=required, on_progress=progress
            )
            if not found.passed:
                raise VerificationError(found, notes)
            report = found.to_json()
        (folder / REPORT).write_text(json.dumps(report, indent=2) + "\n")
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
    return Bundle(target, manifest, report, exported.seconds, tuple(left_out(bindings, source)), notes)


def _origin_of(source: "Checkpoint", digests: dict[str, str]) -> dict[str, Any]:
    """What the manifest says of a checkpoint: enough to know it again."""
    from coreai_recipes.checkpoint.identity import config_digest, sizes_of

    config = config_digest(source)
    return {
        "source": source.source,
        "sha256": digests,
        "bytes": sizes_of(source),
        **({} if config is None else {"config_sha256": config}),
    }


def _manifest(
    recipe: Recipe,
    decoder: Any,
    checkpoint: dict[str, Any],
    eos_token_ids: list[int],
    exported: "Exported",
    costs: Costs,
    folder: Path,
) -> dict[str, Any]:
    """What a host needs. Nothing in it depends on when or where it was built."""
    queries = recipe.export.functions.queries
    from coreai_recipes.tokenizer.tokens import TOKENS

    functions = {
        name: {
            "query": queries.get(name, 1),
            "inputs": {port: {"dtype": p.dtype, "shape": list(p.shape)} for port, p in found.inputs.items()},
            "outputs": {port: {"dtype": p.dtype, "shape": list(p.shape)} for port, p in found.outputs.items()},
            "cost": costs.get(name),
        }
        for name, found in exported.signatures.items()
    }
    states = {
        f"{half}_{kind}": {
            "dtype": "float16",
            "shape": list(spec.shape),
            "kind": kind,
            "rows": spec.rows,
            "window": spec.window,
        }
        for kind, spec in decoder.front.states.items()
        for half in "kv"
    }
    tables = [
        {
            "file": file,
            "role": "table",
            "dtype": "float16",
            "shape": list(shape),
            "row_bytes": 2 * shape[1],
            "input": input_,
        }
        for file, (input_, shape) in exported.tables.items()
    ]
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    names = {path.relative_to(folder).as_posix(): path for path in files}
    return {
        "format": FORMAT,
        "name": recipe.name,
        "recipe_sha256": digest_of(folder / RECIPE),
        "checkpoint": checkpoint,
        "versions": {name: version(name) for name in PINNED},
        "context": recipe.export.context,
        "vocab_size": recipe.model.vocab_size,
        **({"rotary": recipe.rotary_choices} if recipe.rotary_choices else {}),
        "packages": [
            *tables,
            {"file": PACKAGE, "role": "all", "layers": [0, len(recipe.model.layer_kinds)], "functions": functions},
        ],
        "states": states,
        "eos_token_ids": eos_token_ids,
        "tokens": TOKENS,
        "files": {
            name: {"bytes": path.stat().st_size, "sha256": exported.digests.get(name) or digest_of(path)}
            for name, path in names.items()
        },
    }


def _count_costs(package: Path) -> Costs:
    """By function: what one call computes, and reads of weights and states."""
    from coreai_recipes.evaluate import EvaluationError
    from coreai_recipes.evaluate.cost import function_costs

    try:
        found = function_costs(package)
    except EvaluationError:  # an operation that nothing here can run: verification says so, an unverified build may be
        return {}
    return {name: {figure: getattr(cost, figure) for figure in COST} for name, cost in found.items()}


def _check_space(folder: Path, named: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise BundleError(f"{named}: {needed / 1e9:.2f} GB are needed and {free / 1e9:.2f} GB are free")
