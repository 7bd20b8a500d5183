"""Ten cells on two worker processes, of which one is killed in the middle of a build, and what is left to do then."""

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from zoos import ONE_EACH, unclocked, write_zoo

from coreai_recipes.bundle import Bundle
from coreai_recipes.zoo import running
from coreai_recipes.zoo.cluster import BACK_WITHIN
from coreai_recipes.zoo.loading import Loaded, load_zoo
from coreai_recipes.zoo.running import run_zoo
from coreai_recipes.zoo.store import Store
from coreai_recipes.zoo.table import read_table, table_bytes
from coreai_recipes.zoo.working import Outcome

pytestmark = pytest.mark.xdist_group(__name__)

KILLED = "./short.yaml, 16 bits, coreml"
SHORT = "extends: tiny-llama\nname: short\nexport: {context: 48}\n"  # there is less to compute
TEXT = """\
recipes: [./short.yaml, ./noise.yaml]
checkpoints: {./short.yaml: CHECKPOINT, ./noise.yaml: random}
vary: {bits: [16, 8, 6, 4, 2]}
"""


TWO = "recipes: [./short.yaml]\ncheckpoints: {./short.yaml: CHECKPOINT}\nvary: {bits: [16, 4]}\n"


@dataclass
class Ran:
    """A zoo, what became of it, and the steps of the cell whose worker was killed, with their processes."""

    loaded: Loaded
    outcomes: list[Outcome]
    steps: list[tuple[str, int]]

    @property
    def rows(self) -> list[dict[str, Any]]:
        return read_table(Store(self.loaded.store))


@pytest.fixture(scope="module")
def scheduler() -> Iterator[str]:
    """The address of two workers of one machine, processes of their own."""
    import dask
    from distributed import LocalCluster

    with (
        dask.config.set({"distributed.deploy.lost-worker-timeout": BACK_WITHIN}),  # as ours: processors are shared here
        LocalCluster(n_workers=2, **ONE_EACH) as cluster,
    ):
        yield cluster.scheduler_address


def load_short(folder: Path, text: str) -> Loaded:
    (folder / "short.yaml").write_text(SHORT)
    (folder / "noise.yaml").write_text(SHORT.replace("short", "noise") + "model: {layers: [full]}\n")
    return load_zoo(write_zoo(folder, text))


@pytest.fixture(scope="module")
def ten(scheduler: str, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    folder = tmp_path_factory.mktemp("zoo")
    loaded = load_short(folder, TEXT)
    steps: list[tuple[str, int]] = []

    def tell(event: dict[str, Any]) -> None:
        if event["cell"] == KILLED and "step" in event:
            if event["step"] == "torch" and len({process for _, process in steps}) == 1:
                os.kill(event["process"], signal.SIGKILL)
            steps.append((event["step"], event["process"]))

    return Ran(loaded, run_zoo(loaded, scheduler, tell=tell), steps)


def test_ten_cells_pass_though_a_worker_was_killed_in_a_build(ten: Ran) -> None:
    assert {outcome.cell.words: outcome.why for outcome in ten.outcomes if outcome.status != "passed"} == {}
    assert [outcome.cell for outcome in ten.outcomes] == list(ten.loaded.cells)
    begun = [process for step, process in ten.steps if step == "build"]
    assert len(set(begun)) == 2, "the cell was begun in one process, and again in another"


def test_the_table_is_that_of_a_run_which_nobody_disturbed(ten: Ran, scheduler: str, tmp_path: Path) -> None:
    undisturbed = load_short(tmp_path, TWO)
    run_zoo(undisturbed, scheduler)
    theirs = unclocked(read_table(Store(undisturbed.store)))
    ours = [row for row in unclocked(ten.rows) if row["recipe"] == "./short.yaml" and row["bits"] in (16, 4)]
    assert table_bytes(ours) == table_bytes(theirs)
    stages = [row["stage"] for row in ours if row["bits"] == 4]
    assert stages[:3] == ["plan", "build", "convert"]
    assert stages[-1] == "lint"


def test_a_second_run_builds_nothing_and_needs_no_cluster(ten: Ran, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "open_cluster", lambda *_: pytest.fail("a cluster was asked for"))
    before = Store(ten.loaded.store).get("table.parquet")
    assert [outcome.kept for outcome in run_zoo(ten.loaded)] == [True] * 10
    assert Store(ten.loaded.store).get("table.parquet") == before


def test_what_was_built_is_whole_and_of_the_digest_in_the_table(ten: Ran) -> None:
    built = [row for row in ten.rows if row["stage"] == "build"]
    assert len({row["sha256"] for row in built}) == 10
    for row in built:
        (folder,) = Path(ten.loaded.store, "bundles", row["cell"]).iterdir()
        Bundle.open(folder).check_files()
    assert [row["why"] for row in built if row["recipe"] == "./noise.yaml"] == ["random weights, all 1 layers"] * 5


def test_nothing_unfinished_is_left_in_the_store(ten: Ran) -> None:
    names = [path.name for path in Path(ten.loaded.store).rglob("*")]
    assert not [name for name in names if name.endswith(".unfinished")]
    assert not [name for name in names if ".building-" in name]
