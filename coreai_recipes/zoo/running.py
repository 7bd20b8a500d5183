"""A zoo from its first cell to its table: what is known already is taken, all else is built where there is room."""

import hashlib
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from coreai_recipes.errors import UserError, describe
from coreai_recipes.recipe.loader import load_resolved, recipe_text
from coreai_recipes.zoo.cells import Cell
from coreai_recipes.zoo.cluster import Cluster, local_memory, open_cluster
from coreai_recipes.zoo.estimating import Estimate, estimate
from coreai_recipes.zoo.identity import Identity, cluster_versions, identify, key_of, versions
from coreai_recipes.zoo.loading import Loaded
from coreai_recipes.zoo.schema import RANDOM
from coreai_recipes.zoo.store import Store, StoreError
from coreai_recipes.zoo.table import write_table
from coreai_recipes.zoo.working import Identified, Order, Outcome, identify_checkpoint, kept_outcome, run_cell

TOPIC = "recipe-zoo"
IDENTIFYING = 1 << 30  # bytes of memory: a process with a recipe, which reads a file once
Tell = Callable[[dict[str, Any]], object]


def run_zoo(
    loaded: Loaded, scheduler: str | None = None, resume: bool = True, tell: Tell = lambda event: None
) -> list[Outcome]:
    """Build the cells of a zoo that the store does not have, and write its table; the outcomes in the zoo's order.

    `tell` hears of each step that a worker begins, with its process, and of each outcome. A cell whose failure may
    pass by itself is tried once more when all others are done. Raises UserError where nothing can be built at all: for
    a store that cannot be written, a scheduler that does not answer, workers of other versions.
    """
    store = Store(loaded.store)
    store.check()
    run = _Run(loaded, store, resume, tell)
    try:
        run.take_known()
        if run.missing():
            run.estimate_all()
            needs = [run.estimates[cell].memory for cell in run.missing()]
            if needs:
                with open_cluster(scheduler, needs) as cluster:
                    run.build_all(cluster)
    except BaseException:
        with suppress(StoreError):  # what ended the run is what is told
            _put_table(store, run.outcomes())
        raise
    finally:
        store.remove_leftovers()
    _put_table(store, run.outcomes())
    return run.outcomes()


def _put_table(store: Store, outcomes: Sequence[Outcome]) -> None:
    """Write the table of what is known by now. Raises StoreError where it cannot be; cells are kept all the same."""
    if outcomes:
        try:
            write_table(store, [row for outcome in outcomes for row in outcome.rows])
        except StoreError as error:
            raise StoreError(f"{error}: there is no table of it; a second run keeps what was built") from error


@dataclass
class _Run:
    loaded: Loaded
    store: Store
    resume: bool
    tell: Tell
    keys: dict[Cell, str] = field(default_factory=dict)
    estimates: dict[Cell, Estimate] = field(default_factory=dict)
    found: dict[Cell, Outcome] = field(default_factory=dict)

    def missing(self) -> list[Cell]:
        """The cells of which nothing is known yet."""
        return [cell for cell in self.loaded.cells if cell not in self.found]

    def outcomes(self) -> list[Outcome]:
        """In the zoo's order, of those cells that have one."""
        return [self.found[cell] for cell in self.loaded.cells if cell in self.found]

    def note(self, outcome: Outcome) -> None:
        self.found[outcome.cell] = outcome
        self.tell({"cell": outcome.cell.words, "outcome": outcome})

    def take_known(self) -> None:
        """What the store has, as far as that is known without a worker: of checkpoints here that it has seen."""
        for cells in by_recipe(self.missing()):
            try:
                recipe = load_resolved(cells[0].source, cells[0].overrides).recipe
                if _is_here(cells[0].checkpoint):
                    self.take(cells, identify(recipe, cells[0].checkpoint, self.store, known_only=True))
            except UserError as error:
                for cell in cells:
                    self.note(Outcome.of_error(cell, "", "\n".join(error.problems)))

    def take(self, cells: Iterable[Cell], identity: Identity | None) -> None:
        """The keys of cells of one checkpoint, and what the store has under them."""
        if identity is None:
            return
        for cell in cells:
            try:
                self.keys[cell] = key_of(cell, _text_of(cell), identity, versions())
            except UserError as error:  # a recipe that cannot be this cell
                self.note(Outcome.of_error(cell, "", "\n".join(error.problems)))
                continue
            known = None
            if self.resume:
                with suppress(StoreError):  # it is built anew, and by then may be kept
                    known = kept_outcome(self.store, cell, self.keys[cell])
            if known is not None:
                self.note(known)

    def estimate_all(self) -> None:
        for cell in self.missing():
            try:
                self.estimates[cell] = estimate(cell, local_memory())
            except UserError as error:
                self.note(Outcome.of_error(cell, self.keys.get(cell, ""), "\n".join(error.problems)))

    def build_all(self, cluster: Cluster) -> None:
        """Identify, build what is missing, and once more what may go better then."""
        cluster.client.subscribe_topic(TOPIC, lambda event: self.tell(event[1]))
        self.identify_all(cluster)
        self.build(cluster, self.missing(), leaders=True)
        again = [outcome.cell for outcome in self.outcomes() if outcome.may_mend and outcome.key]
        if again:
            self.build(cluster, again, leaders=False)

    def identify_all(self, cluster: Cluster) -> None:
        """The checkpoint of each recipe, once: downloaded and digested by a worker."""
        unknown = [cells for cells in by_recipe(self.missing()) if cells[0] not in self.keys]
        for is_last in (False, True):
            resources = cluster.resources(IDENTIFYING)
            asked = [
                (
                    cells,
                    cluster.client.submit(
                        identify_checkpoint, cells[0], self.loaded.store, pure=False, resources=resources
                    ),
                )
                for cells in unknown
            ]
            unknown = []
            for cells, future in asked:
                found = _answer(future, Identified(None, "its worker died while it read the checkpoint", True))
                if found.identity is not None:
                    self.take(cells, found.identity)
                elif found.may_mend and not is_last:
                    unknown.append(cells)
                else:
                    for cell in cells:
                        self.note(Outcome.of_error(cell, "", found.why))

    def build(self, cluster: Cluster, cells: list[Cell], leaders: bool) -> None:
        """Every cell. Of a recipe's cells in one format the first converts the fragments, and the others wait."""
        from distributed import as_completed

        waiting: dict[tuple[str, str], list[Cell]] = {}
        first = []
        for cell in cells:
            if (reason := self.why_no_room(cell, cluster)) is not None:
                self.note(Outcome.of_error(cell, self.keys[cell], reason))
                continue
            group = (cell.recipe, cell.format)
            if leaders and group in waiting:
                waiting[group].append(cell)
            else:
                waiting.setdefault(group, [])
                first.append(cell)
        running = {self.submit(cluster, cell): cell for cell in first}
        done = as_completed(running, loop=cluster.client.loop)
        for future in done:
            cell = running.pop(future)
            self.note(_answer(future, self.died(cell)))
            for next_cell in waiting.pop((cell.recipe, cell.format), []):
                following = self.submit(cluster, next_cell)
                running[following] = next_cell
                done.add(following)

    def submit(self, cluster: Cluster, cell: Cell) -> Any:
        cost = self.estimates[cell]
        order = Order(cell, self.keys[cell], self.loaded.store, cluster_versions(), cluster.threads)
        return cluster.client.submit(
            work, order, pure=False, resources=cluster.resources(cost.memory), priority=int(cost.seconds)
        )

    def why_no_room(self, cell: Cell, cluster: Cluster) -> str | None:
        needed = self.estimates[cell].memory
        if cluster.memory is None or needed <= cluster.memory:
            return None
        return f"needs about {needed / 1e9:.1f} GB of memory; the largest worker has {cluster.memory / 1e9:.1f} GB"

    def died(self, cell: Cell) -> Outcome:
        why = "workers died one after the other while they built it: perhaps for want of memory"
        return Outcome.of_error(cell, self.keys[cell], why, may_mend=True)


def work(order: Order) -> Outcome:
    """As `run_cell`, on a worker, which tells of each step that it begins."""
    from distributed import get_worker

    worker = get_worker()
    logging.getLogger("coremltools").setLevel(logging.ERROR)  # as in a command: it warns of what nothing here needs

    def announce(step: str) -> None:
        event = {"cell": order.cell.words, "step": step, "worker": worker.address, "process": os.getpid()}
        worker.log_event(TOPIC, event)

    return run_cell(order, announce)


def by_recipe(cells: Iterable[Cell]) -> Iterator[list[Cell]]:
    """The cells of each recipe, which have one checkpoint."""
    found: dict[str, list[Cell]] = {}
    for cell in cells:
        found.setdefault(cell.recipe, []).append(cell)
    yield from found.values()


def _answer(future: Any, died: Any) -> Any:
    """What a task returned. Tasks raise nothing: one that did was lost with its workers, or never got there."""
    from distributed import KilledWorker

    try:
        return future.result()
    except KilledWorker:
        return died
    except UserError:
        raise
    except Exception as error:
        if isinstance(died, Outcome):
            return Outcome.of_error(died.cell, died.key, describe(error), may_mend=True)
        return Identified(None, describe(error), True)


def _is_here(checkpoint: str | None) -> bool:
    return checkpoint == RANDOM or (checkpoint is not None and os.path.exists(checkpoint))


def _text_of(cell: Cell) -> str:
    """The recipe that a cell builds, with the digests of the texts that it learns from."""
    resolved = load_resolved(cell.source, cell.overrides)
    recipe = resolved.recipe
    said = [recipe_text(recipe)]
    texts = None if recipe.compress is None or recipe.compress.calibration is None else recipe.compress.calibration.text
    for name in texts if isinstance(texts, list) else ():
        file = Path(cell.source).parent / name
        said.append(f"{name} {hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else None}")
    return "\n".join(said)


def known_outcomes(loaded: Loaded) -> dict[Cell, Outcome]:
    """What the store has of a zoo, as far as that is known on this machine; and cells that cannot be."""
    run = _Run(loaded, Store(loaded.store), resume=True, tell=lambda event: None)
    run.take_known()
    return run.found
