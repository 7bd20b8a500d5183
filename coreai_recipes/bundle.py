"""Building: the steps from a recipe and a checkpoint to a sealed bundle, in order; and opening what was built."""

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coreai_recipes.errors import BundleError, CheckpointError, UserError
from coreai_recipes.manifest.contents import foreign_entries
from coreai_recipes.manifest.files import locate, read_regular
from coreai_recipes.manifest.reading import MANIFEST, RECIPE, REPORT, read_manifest, read_report, read_sealed, typed
from coreai_recipes.manifest.schema import FORMAT, Manifest
from coreai_recipes.origin import Held, hold_origin
from coreai_recipes.recipe import Recipe, load_recipe, recipe_text
from coreai_recipes.staging import check_place, recover, staged_folder

if TYPE_CHECKING:
    from coreai_recipes.checkpoint.base import Checkpoint
    from coreai_recipes.export.exporter import Exported, Progress
    from coreai_recipes.verification.report import Report
    from coreai_recipes.verification.subject import Runtime

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


@dataclass(frozen=True)
class Bundle:
    """A built folder. `seconds` are those of the build's steps, `left_out` what of the checkpoint it did not use and
    `notes` what it decided against the recipe's word, when it was built just now."""

    path: Path
    manifest: dict[str, Any]
    report: dict[str, Any]
    seconds: dict[str, float] | None = None
    left_out: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @classmethod
    def open(cls, path: str | Path) -> "Bundle":
        """The bundle at `path`. Raises BundleError when there is none, when its format is a later one, and when what
        its files say cannot be, or contradicts what was built."""
        path = Path(path)
        recover(path)
        try:
            manifest, report = read_manifest(path), read_report(path)
        except (FileNotFoundError, NotADirectoryError):
            raise BundleError(f"{path}: no bundle is here ({MANIFEST} and {REPORT} make one): recipe build") from None
        except OSError as error:
            raise BundleError(f"{path}: cannot be read: {(error.strerror or str(error)).lower()}") from None
        from coreai_recipes.contract import hold_manifest

        bundle = cls(path, manifest, report)
        bundle._check_places()
        hold_manifest(bundle.described, bundle.recipe, str(path))
        return bundle

    @cached_property
    def described(self) -> Manifest:
        """The manifest, typed."""
        return typed(Manifest, self.manifest, f"{self.path}: {MANIFEST}")

    @property
    def recipe(self) -> Recipe:
        """The resolved recipe that was built."""
        return self._recipe

    @cached_property
    def _recipe(self) -> Recipe:
        from coreai_recipes.recipe.loader import load_sealed
        from coreai_recipes.recipe.yaml_reader import MAX_BYTES

        try:
            content = read_regular(self.path / RECIPE, MAX_BYTES, self.path)
        except FileNotFoundError:
            raise BundleError(f"{self.path}: missing since it was built: {RECIPE}") from None
        if hashlib.sha256(content).hexdigest() != self.described.recipe_sha256:
            self.check_files()  # with all else that was modified
        return load_sealed(self.path / RECIPE)

    @property
    def package(self) -> Path:
        return self.path / self.described.programs[0].file

    @property
    def bytes(self) -> int:
        """The size of every file that was sealed."""
        return sum(file.bytes for file in self.described.files.values())

    def _check_places(self) -> None:
        """Raise BundleError where something is no file, or a link that leads outside: whoever reads it later does not
        look again."""
        problems: list[str] = []
        for name in self.described.files:
            try:
                locate(self.path, name)
            except (FileNotFoundError, NotADirectoryError):
                continue  # whoever needs it says so
            except BundleError as error:
                problems += error.problems
        added = foreign_entries(self.path, self.described)
        problems += [
            f"{self.path}: added since it was built: {name}" for name in added if (self.path / name).is_symlink()
        ]
        BundleError.collect(problems)

    def check_package(self) -> None:
        """Raise UserError where the package is not what the manifest says of it. Digests are `check_files`'s."""
        from coreai_recipes.contract import hold_package

        places = tuple(package.file for package in self.described.packages)
        problems = []
        for name, sealed in sorted(self.described.files.items()):
            if name.startswith(places):
                try:
                    size = locate(self.path, name).stat().st_size
                except (FileNotFoundError, NotADirectoryError):
                    problems.append(f"{self.path}: missing since it was built: {name}")
                    continue
                if size != sealed.bytes:
                    problems.append(f"{self.path}: modified since it was built: {name}")
        BundleError.collect(problems)
        hold_package(self.package, self.described.programs[0], self.described.states)

    def check_files(self) -> None:
        """Raise BundleError with each file that is missing, added or not as it was sealed."""
        sealed = read_sealed(self.path)
        added = sorted(foreign_entries(self.path, sealed))
        there = {name for name in sealed.files if os.path.isfile(self.path / name) and name not in added}
        missing = sorted(sealed.files.keys() - there - set(added))
        problems = [f"{self.path}: missing since it was built: {name}" for name in missing]
        problems += [f"{self.path}: added since it was built: {name}" for name in added]
        for name in sorted(there):
            file = self.path / name
            try:
                same = file.stat().st_size == sealed.files[name].bytes and _digest(file) == sealed.files[name].sha256
            except OSError as error:
                problems.append(f"{file}: cannot be read: {(error.strerror or str(error)).lower()}")
                continue
            if not same:
                problems.append(f"{self.path}: modified since it was built: {name}")
        BundleError.collect(problems)


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
            required = ["package"] if recipe.reference is None else ["torch", "package", "package_float16"]
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
    """Prove a bundle, or a recipe before it is built, equal to transformers. See the stages of DESIGN.

    With `random` the weights are random ones in the recipe's shape, one layer of each kind where all would take long.
    Raises UserError when the bundle was modified since it was built, or the checkpoint does not fit.
    """
    from coreai_recipes.verification.run import run_stages

    if isinstance(target, str | Path):
        recover(Path(target))
        target = Bundle.open(target) if os.path.exists(Path(target) / MANIFEST) else load_recipe(target)
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
    bundle.check_package()
    recipe, origin = bundle.recipe, bundle.described.checkpoint
    if draft is not None and recipe.draft is None:
        raise BundleError(f"{bundle.path}: was built without a draft: build it again with --draft {draft}")
    name, reference = bundle.described.name, recipe.reference
    named = None if reference is None else reference.checkpoint
    held = hold_origin(origin, name, checkpoint, named, "--checkpoint SRC")
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


def find_draft(recipe: Recipe, draft: "Checkpoint | str | Path | None") -> tuple[Recipe, "Checkpoint | None"]:
    """The recipe with the draft that is to be built, and its checkpoint; both None where there is none."""
    if recipe.draft is None and draft is None:
        return recipe, None
    if draft is None and recipe.draft is not None and recipe.draft.reference.checkpoint is None:
        raise CheckpointError(f"{recipe.name}: the recipe's draft names no checkpoint: give one with --draft SRC")
    from coreai_recipes.checkpoint.base import Checkpoint
    from coreai_recipes.checkpoint.open import open_checkpoint

    named = draft if draft is not None else recipe.draft.reference.checkpoint  # type: ignore[union-attr]
    source = named if isinstance(named, Checkpoint) else open_checkpoint(str(named))
    if recipe.draft is None:
        from coreai_recipes.recipe.importing.assembling import with_draft

        recipe = with_draft(recipe, source.config)
    return recipe, source


def _verify_random(
    target: Bundle | Recipe,
    given: "tuple[Checkpoint | str | Path | None, ...]",
    stages: Sequence[str] | None,
    require: Sequence[str],
    progress: "Progress | None",
) -> "Report":
    if isinstance(target, Bundle):
        raise UserError(f"--random takes a recipe: {target.path} is a bundle, which has weights of its own")
    if any(source is not None for source in given):
        raise UserError("--random makes the weights itself: give no --checkpoint and no --draft beside it")
    from coreai_recipes.verification.random_checkpoint import RandomCheckpoint, make_affordable
    from coreai_recipes.verification.run import run_stages

    recipe, layers = make_affordable(target)
    source = RandomCheckpoint(recipe)
    report = run_stages(recipe, source, None, stages=stages, require=require, on_progress=progress)
    return report.with_detail({"weights": source.source, "layers": layers})


def find_checkpoint(recipe: Recipe, checkpoint: "Checkpoint | str | Path | None") -> "Checkpoint":
    """`checkpoint` opened, or the one that the recipe's reference names."""
    from coreai_recipes.checkpoint.base import Checkpoint
    from coreai_recipes.checkpoint.open import open_checkpoint

    if isinstance(checkpoint, Checkpoint):
        return checkpoint
    if checkpoint is not None:
        return open_checkpoint(checkpoint)
    if recipe.reference is None or recipe.reference.checkpoint is None:
        raise CheckpointError(f"{recipe.name}: the recipe names no checkpoint: give one with --checkpoint SRC")
    return open_checkpoint(recipe.reference.checkpoint)


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
        "recipe_sha256": _digest(folder / RECIPE),
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
            name: {"bytes": path.stat().st_size, "sha256": exported.digests.get(name) or _digest(path)}
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


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
