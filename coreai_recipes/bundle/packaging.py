"""A recipe's package written into a bundle's folder: modules, bindings, export. It may be written again."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coreai_recipes.recipe import Recipe

if TYPE_CHECKING:
    from coreai_recipes.checkpoint.base import Checkpoint
    from coreai_recipes.decoder.stack import StackModule
    from coreai_recipes.export.cache import FragmentCache
    from coreai_recipes.export.reporting import Exported, Progress
    from coreai_recipes.lint.findings import Lint
    from coreai_recipes.storage.fitted import Fitted
    from coreai_recipes.weights.binding import Binding

# what the manifest says of each function
COST = ("flops", "weight_bytes", "state_bytes", "result_bytes", "padded_bytes")
Costs = dict[str, dict[str, int]]  # by function and figure


@dataclass(frozen=True)
class Composed:
    """The modules of a recipe in the form that is exported, and the tensors that fill them. Nothing is read yet."""

    recipe: Recipe
    stacks: "tuple[StackModule, ...]"
    bindings: "dict[str, Binding]"


@dataclass(frozen=True)
class Written:
    """The packages as they were written: what made them, what the export says of them, what their calls cost by file,
    and which rules their programs break."""

    composed: Composed
    exported: "Exported"
    costs: dict[str, Costs]
    lint: "Lint"


def compose(recipe: Recipe, sources: "Mapping[str, Checkpoint]") -> Composed:
    """The modules of `recipe`, and what fills them of its stacks' checkpoints.

    Raises CheckpointError where one does not fit.
    """
    from coreai_recipes.decoder.filling import bind_stacks
    from coreai_recipes.decoder.model import exported_form
    from coreai_recipes.decoder.stacks import build_stacks

    stacks = build_stacks(recipe, exported_form(recipe))
    return Composed(recipe, stacks, bind_stacks(stacks, sources))


def write_package(
    composed: Composed,
    package: Path,
    cache: "FragmentCache",
    progress: "Progress | None",
    fitted: "Mapping[str, Fitted]",
    facts: "Mapping[str, Any]",
) -> Written:
    """Write the package, or the several beside it that the recipe asks for, in place of what a composition before it
    has written there.

    Parameters of `fitted` were encoded before; rules look at these `facts` of the manifest.
    """
    from coreai_recipes.aimodel.folder import PROGRAM
    from coreai_recipes.bundle.ruling import find_broken
    from coreai_recipes.decoder.model import table_file
    from coreai_recipes.lint.asset import read_asset
    from coreai_recipes.lint.reading import LintInput, open_package
    from coreai_recipes.planning.costs import call_costs
    from coreai_recipes.storage.chunks import chunks_of
    from coreai_recipes.storage.layout import FILE
    from coreai_recipes.storage.parameters import raw_tables
    from coreai_recipes.targets.coreml.exporter import export_package

    chunks = {chunk.file(package): chunk for chunk in chunks_of(composed.stacks)}
    for path in chunks:
        if path.exists():
            shutil.rmtree(path)
    for name in raw_tables(composed.stacks).shapes:
        (package.parent / table_file(name)).unlink(missing_ok=True)
    if composed.recipe.export.format == "coreai":
        from coreai_recipes.targets.coreai.exporter import export_package as export_asset

        made = export_asset(composed.stacks, composed.bindings, package, cache, progress, fitted)
        assets = LintInput(package.name, [read_asset(path, is_ours=True) for path in chunks])
        assets.files = {f"{path.name}/{PROGRAM}": (path / PROGRAM).stat().st_size for path in chunks}
        assets.format = "coreai"
        broken = find_broken(composed.recipe, assets, package.parent, facts)
        costs = call_costs(composed.stacks) if len(chunks) == 1 else {}
        return Written(composed, made, {path.name: costs for path in chunks}, broken)
    counted: dict[str, Costs] = {}
    opened = LintInput(package.name if len(chunks) == 1 else composed.recipe.name, [])
    found: list[Lint] = []

    def look(written: Path) -> None:  # beside the weights, which need no interpreter
        counted[written.name] = _kept_costs(written, cache)
        opened.programs += open_package(written, is_whole=False).programs
        place = FILE if len(chunks) == 1 else Path(written.name, FILE)
        opened.files[place.as_posix()] = chunks[written].parameters.file_bytes
        if len(counted) == len(chunks):
            found.append(find_broken(composed.recipe, opened, package.parent, facts))

    exported = export_package(
        composed.stacks,
        composed.bindings,
        package,
        cache,
        progress,
        on_program=look,
        fitted=fitted,
    )
    return Written(composed, exported, counted, found[0])


def _kept_costs(package: Path, cache: "FragmentCache") -> Costs:
    """As `_count_costs`, once for the same program and the same code."""
    from coreai_recipes import evaluate
    from coreai_recipes.export.cache import fingerprint
    from coreai_recipes.targets.coreml.mlpackage import MODEL

    code = [path.read_bytes() for path in sorted(Path(evaluate.__file__).parent.rglob("*.py"))]
    key = fingerprint("costs", (package / MODEL).read_bytes(), *code)
    found: Costs = json.loads(cache.get_or_make(key, lambda: json.dumps(_count_costs(package)).encode()))
    return found


def _count_costs(package: Path) -> Costs:
    """By function: what one call computes, and reads of weights and states."""
    from coreai_recipes.evaluate import EvaluationError
    from coreai_recipes.evaluate.cost import function_costs

    try:
        found = function_costs(package)
    except EvaluationError:  # an operation that nothing here can run: verification says so, an unverified build may be
        return {}
    return {name: {figure: getattr(cost, figure) for figure in COST} for name, cost in found.items()}
