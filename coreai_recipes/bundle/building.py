"""Building: the steps from a recipe and a checkpoint to a sealed bundle, in order."""

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coreai_recipes.bundle.adapting import open_unmerged, origins_of, sealed_recipe
from coreai_recipes.bundle.hosting import copy_tokenizer, files_for_host
from coreai_recipes.bundle.low_rank import with_low_rank, write_adapters
from coreai_recipes.bundle.opened import Bundle, digest_of
from coreai_recipes.bundle.packaging import Written, compose, write_package
from coreai_recipes.bundle.ruling import hold_rules
from coreai_recipes.bundle.scaling import FIELD, in_words, prove_and_scale, start_scale, write_first
from coreai_recipes.bundle.sources import find_sources
from coreai_recipes.errors import UserError
from coreai_recipes.hosts.logits import Pieces
from coreai_recipes.manifest.reading import MANIFEST, PACKAGES, RECIPE, REPORT, typed
from coreai_recipes.manifest.schema import FORMAT, Manifest
from coreai_recipes.manifest.staging import NoSpace, check_place, staged_folder
from coreai_recipes.recipe import Recipe, Resolved, load_resolved, recipe_text
from coreai_recipes.recipe.compress_rules import check_bits
from coreai_recipes.recipe.schema import DRAFT, MODEL

if TYPE_CHECKING:
    from coreai_recipes.checkpoint.adapted import Unmerged
    from coreai_recipes.checkpoint.base import Checkpoint
    from coreai_recipes.export.cache import FragmentCache
    from coreai_recipes.export.reporting import Progress
    from coreai_recipes.storage.fitted import Fitted
    from coreai_recipes.verification.report import Report
    from coreai_recipes.verification.subject import Subject

# what the bytes of a package depend on, by its format
PINNED = {
    "coreml": ("coreai-recipes", "coremltools", "torch"),
    "coreai": ("coreai-recipes", "coreai-core", "coreai-torch", "torch"),
}


class VerificationError(Exception):
    """A build whose package did not pass; nothing was installed. `report` says at which stage, `notes` what the build
    had decided against the recipe's word."""

    def __init__(self, report: "Report", notes: tuple[str, ...] = ()) -> None:
        super().__init__("verification failed")
        self.report, self.notes = report, notes


class OverBudget(Exception):
    """A build whose weights would take more bits than its recipe allows, known before any is read."""


def build(
    recipe: Recipe | str | Path,
    checkpoint: "Checkpoint | str | Path | None" = None,
    out: str | Path = "dist",
    *,
    draft: "Checkpoint | str | Path | None" = None,
    overrides: Sequence[str] = (),
    bits: int | None = None,
    device: str | None = None,
    adapters: Mapping[str, str] | None = None,
    verified: bool = True,
    cached: bool = True,
    fragments: "FragmentCache | None" = None,
    progress: "Progress | None" = None,
) -> Bundle:
    """Build `recipe` from `checkpoint` (its reference's, when none is named) into the folder OUT/NAME.

    The weights of a recipe's draft come from `draft`, or its reference's checkpoint; a recipe without one gets the
    draft that the config of `draft` describes. With `bits` its matrices are compressed to about as many
    (`storage.shorthand`), whatever it says of them itself. With `device` its fields are those that the rules choose for
    it (`planning.choosing`), except those that `overrides` name; what was chosen is among the bundle's notes.
    Converted fragments are kept in `fragments`, by default in the user's cache where they are to be `cached`.
    `adapters` says by name where those of the recipe lie, instead of it.
    Raises UserError for what the user can mend, VerificationError when the package is not equal to transformers, and
    RuleError when it breaks a rule of the engine that holds for the recipe's device and that it does not allow,
    OverBudget when its weights take more bits than it allows; then, and when interrupted or killed, the bundle that
    stood there before is as it was.
    """
    if bits is not None:
        check_bits(bits)
    on = None
    if device is not None:
        from coreai_recipes.lint.devices import find_device

        on = find_device(device)
    resolved: Resolved | None = None
    if not isinstance(recipe, Recipe):
        resolved = load_resolved(recipe, overrides)
        recipe = resolved.recipe
    from coreai_recipes.calibration.text import hold_texts

    hold_texts(recipe, resolved)
    if recipe.export.format == "coreai":
        from coreai_recipes.running.coreai import check_coreai

        check_coreai()
        if on is not None:
            from coreai_recipes.planning.choosing import check_rules

            check_rules(recipe, on)
    if draft is None and bits is None:
        _hold_storage_rules(recipe, resolved)  # before anything is downloaded
    target = Path(out) / recipe.name
    check_place(target)  # what is there may be kept: said before anything is downloaded, let alone converted
    recipe, sources = find_sources(recipe, {MODEL: checkpoint, DRAFT: draft}, adapters=adapters)
    source = sources[MODEL]
    beside = open_unmerged(recipe, source, adapters)
    recipe = sealed_recipe(recipe, source, beside)
    from coreai_recipes.checkpoint.kept_tokenizer import KeptTokenizer
    from coreai_recipes.export.cache import FragmentCache, default_root

    cache = fragments or FragmentCache(default_root() if cached else None)
    tokenizer = KeptTokenizer(source, cache)
    # beside the import of torch, in a process and on threads of their own
    tokenizer.ask_ahead()
    digests = {key: each.start_digests() for key, each in sources.items()}
    from coreai_recipes.checkpoint.tokenizer_files import check_ids
    from coreai_recipes.decoder.filling import left_out, settle_head
    from coreai_recipes.planning.contract import hold_manifest
    from coreai_recipes.storage.budget import bits_over
    from coreai_recipes.storage.chunks import chunks_of
    from coreai_recipes.storage.parameters import raw_tables, stored_parameters
    from coreai_recipes.tokenizer.tokens import read_tokens

    recipe, note = settle_head(recipe, source)
    small = None
    if bits is not None:
        from coreai_recipes.storage.shorthand import why_nothing, with_bits

        recipe = with_bits(recipe, bits)
        small = why_nothing(recipe)
    elif draft is not None:
        _hold_storage_rules(recipe, resolved)  # they may name the draft's matrices, which its config describes
    from coreai_recipes.storage.source import with_source
    from coreai_recipes.weights.regrouping import SAID

    recipe, as_source = with_source(with_low_rank(recipe, source, beside), sources)
    chosen: tuple[str, ...] = ()
    if on is not None:
        from coreai_recipes.planning.choosing import choose

        recipe, choices = choose(recipe, on, overrides)
        chosen = tuple(f"for {on.words}: {choice.words}" for choice in choices)
    recipe, measures, why_one = start_scale(recipe, verified)
    packing = None if source.packing is None else f"weights are dequantised from {source.packing}"
    moved = SAID if recipe.regroups else None
    notes = tuple(each for each in (packing, note, small, *as_source, *chosen, moved, why_one) if each)
    composed = compose(recipe, sources)
    source.check_tokenizer(recipe.model.vocab_size)
    package = PACKAGES[recipe.export.format]
    with staged_folder(target) as folder:
        tokenizer.write(folder)
        copy_tokenizer(recipe, folder)
        tokens = read_tokens(folder)
        check_ids(tokens, folder, recipe.model.vocab_size, source.place)
        if not tokens.end_tokens:
            notes += (
                "no end token: the checkpoint names none, so an answer ends at --max-tokens or the context's end",
            )
        stored, chunks = stored_parameters(composed.stacks), chunks_of(composed.stacks)
        over = bits_over(recipe, stored)
        if over is not None:
            raise OverBudget(over)
        size = sum(chunk.parameters.bytes for chunk in chunks) + raw_tables(composed.stacks).bytes
        _check_space(folder, target.parent, size)
        looked_at = _looked_at(recipe, list(tokens.end_tokens))
        fitted: dict[str, Fitted] = {}
        if stored.calibrates:
            fitted, said = _fit(recipe, sources, folder, resolved, progress)
            notes += said

        def write(recipe: Recipe) -> Written:
            modules = composed if recipe is composed.recipe else compose(recipe, sources)
            return write_package(modules, folder / package, cache, progress, fitted, looked_at)

        written = write_first(composed, write, measures)
        recipe = written.composed.recipe
        origins = {key: _origin_of(each, digests[key].result()) for key, each in sources.items()}
        adapted = origins_of(recipe, source, beside)
        facts = {**origins.pop(MODEL), **origins, **({} if adapted is None else {"adapters": adapted})}

        def describe() -> dict[str, Any]:
            (folder / RECIPE).write_text(recipe_text(written.composed.recipe))
            write_adapters(written.composed, beside, folder)
            for name, text in files_for_host(recipe, package, list(tokens.end_tokens)).items():
                (folder / name).write_text(text)
            manifest = _manifest(written, facts, looked_at, folder)
            # nothing is installed that could not be opened
            hold_manifest(typed(Manifest, manifest, f"{target}: {MANIFEST}"), written.composed.recipe, str(target))
            return manifest

        def rewrite(recipe: Recipe) -> None:
            nonlocal written
            written = write(recipe)

        manifest = describe()
        held = hold_rules(recipe, written.lint, notes)
        report: dict[str, Any] = {"passed": False, "stages": []}
        if verified:
            subject = _subject(recipe, sources, folder / package, progress, beside)
            found, figures = _prove(subject, rewrite if measures else None)
            if not found.passed:
                raise VerificationError(found, notes)
            report = found.to_json()
            if figures:
                notes += (f"{FIELD}: {figures['scale']:g}, {in_words(figures)}",)
                manifest = describe() | {"residual_scale": figures}
                held = hold_rules(written.composed.recipe, written.lint, notes)
        (folder / REPORT).write_text(json.dumps(report, indent=2) + "\n")
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
    unused = tuple(left_out(composed.bindings, source))
    return Bundle(target, manifest, report, written.exported.seconds, unused, notes, held, stored.to_json())


def _hold_storage_rules(recipe: Recipe, written: Resolved | None) -> None:
    if recipe.compress is not None and recipe.compress.rules:
        from coreai_recipes.storage.matching import hold_storage_rules

        hold_storage_rules(recipe, written)


def _fit(
    recipe: Recipe,
    sources: "Mapping[str, Checkpoint]",
    tokenizer: Path,
    written: Resolved | None,
    progress: "Progress | None",
) -> "tuple[dict[str, Fitted], tuple[str, ...]]":
    """The matrices of the recipe that are fitted to its text, in temporary files; and what is to be said of that."""
    from coreai_recipes.calibration.calibrating import calibrate_on
    from coreai_recipes.calibration.text import folder_of
    from coreai_recipes.decoder.model import count_parameters
    from coreai_recipes.verification.memory import fits, needs

    whole = 4 * count_parameters(recipe)  # of which tuning holds two
    if recipe.compress is not None and recipe.compress.tune is not None and not fits(whole):
        raise UserError(f"compress.tune: {needs(whole)}\n  build without it, or on a machine that has as much")
    scratch = Path(tempfile.mkdtemp())  # among what the staged folder removes
    return calibrate_on(
        recipe, sources[MODEL], tokenizer, folder_of(written), scratch, progress, draft=sources.get(DRAFT)
    )


def _subject(
    recipe: Recipe,
    sources: "Mapping[str, Checkpoint]",
    package: Path,
    progress: "Progress | None",
    beside: "Mapping[str, Unmerged]",
) -> "Subject":
    from coreai_recipes.running.program import proving_runtime
    from coreai_recipes.verification.subject import Subject

    runtime = proving_runtime(recipe.export.format)
    return Subject(recipe, sources, package, runtime=runtime, on_progress=progress, adapters=beside)


def _prove(subject: "Subject", rewrite: "Callable[[Recipe], None] | None") -> "tuple[Report, dict[str, Any]]":
    """What verification finds; with `rewrite`, of a package whose scale it has measured, with the figures."""
    from coreai_recipes.verification.run import run_on
    from coreai_recipes.verification.stages import STAGES, usual_stages

    required = [name for name, stage in STAGES.items() if stage.proves(subject)]
    if rewrite is None:
        return run_on(subject, usual_stages(subject.recipe), required), {}
    return prove_and_scale(subject, required, rewrite)


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


def _looked_at(recipe: Recipe, eos_token_ids: list[int]) -> dict[str, Any]:
    """What rules look at of the manifest: all of it is known before a weight is read."""
    versions = {name: version(name) for name in PINNED[recipe.export.format]}
    return {"versions": versions, "vocab_size": recipe.model.vocab_size, "eos_token_ids": eos_token_ids}


def _manifest(written: Written, checkpoint: dict[str, Any], looked_at: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What a host needs. Nothing in it depends on when or where it was built."""
    recipe, exported, costs = written.composed.recipe, written.exported, written.costs
    pieces = Pieces(recipe.model.vocab_size)
    from coreai_recipes.planning.adapter_contract import adapters_in_manifest
    from coreai_recipes.planning.contract import (
        carried_in_manifest,
        functions_of,
        states_in_manifest,
        steps_of,
        tables_of,
    )
    from coreai_recipes.tokenizer.tokens import TOKENS

    queries = {name: query for name, (query, _, _) in functions_of(recipe).items()}
    programs = [
        {
            "file": package.path.name,
            "role": package.chunk.role,
            "layers": [package.chunk.first, package.chunk.end],
            "functions": {
                name: {
                    "query": queries[name],
                    "steps": steps_of(recipe, name),
                    "inputs": {port: {"dtype": p.dtype, "shape": list(p.shape)} for port, p in found.inputs.items()},
                    "outputs": {port: {"dtype": p.dtype, "shape": list(p.shape)} for port, p in found.outputs.items()},
                    "cost": costs[package.path.name].get(name),
                }
                for name, found in package.signatures.items()
            },
        }
        for package in exported.packages
    ]
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    names = {path.relative_to(folder).as_posix(): path for path in files}
    return {
        "format": FORMAT,
        "name": recipe.name,
        "recipe_sha256": digest_of(folder / RECIPE),
        "checkpoint": checkpoint,
        "versions": looked_at["versions"],
        "context": recipe.export.context,
        "vocab_size": looked_at["vocab_size"],
        **({"host": recipe.export.host} if recipe.export.host else {}),
        "logits": {"pieces": pieces.count, "columns": pieces.columns},
        **({"rotary": recipe.rotary_choices} if recipe.rotary_choices else {}),
        "packages": [
            *tables_of(recipe).values(),
            *programs,
        ],
        "states": states_in_manifest(recipe),
        "carried": carried_in_manifest(recipe) or None,
        **({"adapters": adapters_in_manifest(recipe)} if recipe.export.low_rank else {}),
        "eos_token_ids": looked_at["eos_token_ids"],
        "tokens": TOKENS,
        "files": {
            name: {"bytes": path.stat().st_size, "sha256": exported.digests.get(name) or digest_of(path)}
            for name, path in names.items()
        },
    }


def _check_space(folder: Path, named: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        unit, size = ("GB", 1e9) if needed >= 1e8 else ("MB", 1e6)
        raise NoSpace(f"{named}: {needed / size:.2f} {unit} are needed, but only {free / size:.2f} {unit} are free")
