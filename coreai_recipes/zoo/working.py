"""What a worker does: it identifies a checkpoint, or builds, proves and keeps a cell. Nothing here knows of Dask."""

import errno
import gc
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from coreai_recipes.bundle.building import OverBudget, VerificationError, build
from coreai_recipes.bundle.opened import Bundle, identity_of
from coreai_recipes.bundle.ruling import RuleError
from coreai_recipes.errors import UserError, describe
from coreai_recipes.manifest.staging import BeingBuilt, NoSpace, temporary_folder
from coreai_recipes.recipe import Recipe, load_recipe
from coreai_recipes.tokenizer.tokens import Tokens
from coreai_recipes.verification.random_checkpoint import AFFORDABLE_VOCABULARY, RandomCheckpoint, make_affordable
from coreai_recipes.verification.stages import STAGES
from coreai_recipes.zoo.cells import Cell
from coreai_recipes.zoo.estimating import plan_row
from coreai_recipes.zoo.fragments import StoredFragments
from coreai_recipes.zoo.identity import Identity, cluster_versions, identify
from coreai_recipes.zoo.metering import BUILD, Meter, Spent
from coreai_recipes.zoo.rows import Row, from_json, lint_row, report_rows, row, to_json
from coreai_recipes.zoo.schema import FLOAT16_BITS, RANDOM
from coreai_recipes.zoo.store import NO_SPACE, Store, StoreError

NO_TEXT = "compress.calibration=null"  # random weights have no tokenizer, and nothing to learn from a text
PASSING = (ConnectionError, TimeoutError, MemoryError, BeingBuilt, NoSpace)  # what another try may not meet
Announce = Callable[[str], object]


@dataclass(frozen=True)
class Order:
    """A cell to be built: its `key`, where its results go, and the versions that must build it."""

    cell: Cell
    key: str
    store: str
    versions: Mapping[str, str]
    threads: int | None = None


@dataclass(frozen=True)
class Outcome:
    """What became of a cell. `failed` is a verdict on what was built, kept as any other; after an `error` it is built
    again in the next run, and once more in this one where it `may_mend`."""

    cell: Cell
    key: str
    status: Literal["passed", "failed", "error"]
    rows: tuple[Row, ...]
    why: str | None = None
    may_mend: bool = False
    kept: bool = False

    @classmethod
    def of_error(cls, cell: Cell, key: str, why: str, may_mend: bool = False) -> "Outcome":
        return cls(cell, key, "error", (row(cell, key, BUILD, passed=False, why=why),), why, may_mend)


class TextlessCheckpoint(RandomCheckpoint):
    """Random weights that a bundle can be built of: it has a vocabulary, and no text."""

    def write_tokenizer(self, folder: Path) -> None:
        Tokens().write(folder)


def result_name(key: str) -> str:
    """Where the store keeps the outcome of a cell. It is written last: what it speaks of is there."""
    return f"cells/{key}.json"


def kept_outcome(store: Store, cell: Cell, key: str) -> Outcome | None:
    """What an earlier run has found, None where there was none."""
    found = store.get_json(result_name(key))
    if not isinstance(found, dict) or not isinstance(found.get("rows"), list):
        return None
    said = {name: getattr(cell, name) for name in ("recipe", "bits", "device", "format")}
    rows = tuple({**each, **said} for each in from_json(found["rows"]))  # another zoo may call the same cell otherwise
    return Outcome(cell, key, found["status"], rows, found.get("why"), kept=True)


@dataclass(frozen=True)
class Identified:
    """The digests of a checkpoint, or why there are none."""

    identity: Identity | None
    why: str = ""
    may_mend: bool = False


def identify_checkpoint(cell: Cell, store: str) -> Identified:
    """What the cell's checkpoint is; it is downloaded where it is the hub's."""
    try:
        return Identified(identify(load_recipe(cell.source, cell.overrides), cell.checkpoint, Store(store)))
    except UserError as error:
        return Identified(None, "\n".join(error.problems), _may_mend(error))
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        return Identified(None, f"checkpoint of {cell.recipe}: cannot be read: {reason}", _may_mend(error))


def version_problems(expected: Mapping[str, str]) -> list[str]:
    """How this process differs from what the zoo was asked with: `torch 2.9.0, not 2.10.0`."""
    here = cluster_versions()
    names = dict.fromkeys([*expected, *here])
    return [
        f"{name} {here.get(name, 'missing')}, not {expected.get(name, 'there')}"
        for name in names
        if here.get(name) != expected.get(name)
    ]


def run_cell(order: Order, announce: Announce = lambda step: None) -> Outcome:
    """Build and prove a cell, and keep its bundle and its rows in the store. Every failure is an outcome."""
    cell, key = order.cell, order.key
    try:
        wrong = version_problems(order.versions)
        if wrong:
            return Outcome.of_error(cell, key, f"this worker has other versions: {'; '.join(wrong)}")
        with _threads(order.threads):
            return _run(order, announce)
    except NoSpace as error:
        why = Store(order.store).full if Store(order.store).is_local else "\n".join(error.problems)
        return Outcome.of_error(cell, key, why, may_mend=True)
    except UserError as error:
        return Outcome.of_error(cell, key, "\n".join(error.problems), _may_mend(error))
    except Exception as error:  # a fault of ours, or of something below: nobody knows whether it comes again
        return Outcome.of_error(cell, key, describe(error), may_mend=True)
    finally:
        gc.collect()  # programs know each other: what a large cell leaves would be counted as the next one's


def _run(order: Order, announce: Announce) -> Outcome:
    cell, key, store = order.cell, order.key, Store(order.store)
    meter = Meter(STAGES, announce)
    status: Literal["passed", "failed"] = "passed"
    with _place(store, key) as folder:
        try:
            recipe, checkpoint, notes = _whole_or_random(cell)
            bundle = build(
                recipe,
                checkpoint,
                folder,
                overrides=cell.overrides,
                bits=cell.build_bits,
                device=cell.device,
                fragments=StoredFragments(store),
                progress=meter,
            )
        except VerificationError as failure:
            meter.charge()
            status, report = "failed", failure.report.to_json()
            names = ", ".join(stage["name"] for stage in report["stages"] if stage["passed"] is False)
            why: str | None = f"below the floor: {names}"
            rows = [row(cell, key, BUILD, _total(meter), passed=False, why=why, checkpoint=source_of(checkpoint))]
            rows += report_rows(cell, key, report, meter.spent)
        except (OverBudget, RuleError) as failure:
            meter.charge()
            status, why = "failed", str(failure)
            rows = [row(cell, key, BUILD, _total(meter), passed=False, why=why)]
            rows += lint_row(cell, key, failure.lint, False) if isinstance(failure, RuleError) else ()
        else:
            meter.charge()
            why = None
            rows = [*_built_rows(cell, key, bundle, meter, notes)]
            if not store.is_local:
                store.put_folder(f"bundles/{key}/{bundle.path.name}", bundle.path)
    rows = [plan_row(cell, key), *rows]
    store.put_json(result_name(key), {"cell": cell.to_json(), "status": status, "why": why, "rows": to_json(rows)})
    return Outcome(cell, key, status, tuple(rows), why)


def _built_rows(cell: Cell, key: str, bundle: Bundle, meter: Meter, notes: str | None) -> Iterator[Row]:
    weights = bundle.weights or {}
    yield row(
        cell,
        key,
        BUILD,
        _total(meter),
        passed=True,
        weights=weights.get("weights"),
        bytes=bundle.bytes,
        bits_per_weight=weights.get("bits_per_weight"),
        checkpoint=bundle.manifest["checkpoint"]["source"],
        sha256=identity_of(bundle.path),
        why=notes,
    )
    yield from report_rows(cell, key, bundle.report, meter.spent)
    yield from lint_row(cell, key, bundle.lint)


def _whole_or_random(cell: Cell) -> tuple[Recipe | str, RandomCheckpoint | str | None, str | None]:
    """What is built of what. Of random weights as much of a recipe as can be proven in about a minute, and not its
    draft, whose weights must be its target's."""
    if cell.checkpoint != RANDOM:
        return cell.source, cell.checkpoint, None
    fitted = () if cell.bits in (None, FLOAT16_BITS) else (NO_TEXT,)
    whole = load_recipe(cell.source, (*cell.overrides, *fitted))
    recipe, layers = make_affordable(whole, AFFORDABLE_VOCABULARY)
    without = "" if recipe.draft is None else ", without the draft"
    recipe = recipe.model_copy(update={"draft": None})
    return recipe, TextlessCheckpoint(recipe), f"random weights, {layers}{without}"


def source_of(checkpoint: RandomCheckpoint | str | None) -> str | None:
    """What is known of a checkpoint without a bundle of it: that it is random."""
    return checkpoint.source if isinstance(checkpoint, RandomCheckpoint) else None


def _total(meter: Meter) -> Spent:
    """All steps of a build together."""
    steps = meter.spent.values()
    return Spent(
        sum(each.seconds for each in steps),
        sum(each.cpu_seconds for each in steps),
        max((each.peak_memory for each in steps), default=0),
    )


@contextmanager
def _place(store: Store, key: str) -> Iterator[Path]:
    """Where the bundle is written: in a store that is a folder its place there, where a build exchanges it in one step,
    else among the temporary files."""
    if store.is_local:
        yield Path(store.path(f"bundles/{key}"))
        return
    with temporary_folder() as folder:
        yield folder


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """So many of torch's, which a worker's process keeps."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _is_network_error(error: BaseException) -> bool:
    from coreai_recipes.checkpoint.hub import is_network_error

    return isinstance(error, Exception) and is_network_error(error)


def _may_mend(error: BaseException | None) -> bool:
    """Whether something that passes is among an error's causes: a connection, a full disk or memory."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, StoreError) and not error.may_mend:
            return False
        if isinstance(error, (*PASSING, StoreError)) or _is_network_error(error):
            return True
        if isinstance(error, OSError) and error.errno in {*NO_SPACE, errno.EIO}:
            return True
        error = error.__cause__ or error.__context__
    return False


def document(outcome: Outcome) -> dict[str, Any]:
    """An outcome as JSON."""
    return {
        **outcome.cell.to_json(),
        "key": outcome.key,
        "status": outcome.status,
        "why": outcome.why,
        "kept": outcome.kept,
    }
