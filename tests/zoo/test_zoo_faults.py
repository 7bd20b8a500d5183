"""What goes wrong is a sentence: for the whole zoo where nothing can be built, else of a cell, and the others go on."""

import shutil
import signal
import subprocess
import sys
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from zoos import TINY, tiny_zoo, write_zoo

from coreai_recipes.commands.zoo import _counts
from coreai_recipes.errors import CheckpointError, UserError
from coreai_recipes.manifest.staging import NoSpace
from coreai_recipes.zoo import cluster, extra, running, working
from coreai_recipes.zoo.cluster import open_cluster, workers_for
from coreai_recipes.zoo.identity import cluster_versions
from coreai_recipes.zoo.loading import load_zoo
from coreai_recipes.zoo.running import run_zoo
from coreai_recipes.zoo.store import Store, StoreError
from coreai_recipes.zoo.table import read_table
from coreai_recipes.zoo.working import Order, Outcome, run_cell


def test_a_full_disk_is_tried_again_when_the_others_are_done_and_a_broken_checkpoint_is_not(
    tmp_path: Path, inside: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int | None] = []

    def build(*_: object, bits: int | None, **__: object) -> None:
        asked.append(bits)
        raise NoSpace("out: no space left") if bits is None else CheckpointError("checkpoint x: is broken")

    monkeypatch.setattr(working, "build", build)
    outcomes = run_zoo(tiny_zoo(tmp_path, "[16, 4, 2]"), inside)
    assert asked == [None, 4, 2, None]
    assert [(outcome.status, outcome.why) for outcome in outcomes] == [
        ("error", f"store {tmp_path}/store: no space left on the device; free some, or name another store"),
        ("error", "checkpoint x: is broken"),
        ("error", "checkpoint x: is broken"),
    ]


def test_an_interrupted_zoo_keeps_the_table_of_what_it_knows_and_nothing_unfinished(
    tmp_path: Path, inside: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(*_: object, **__: object) -> None:
        raise CheckpointError("checkpoint x: is broken")

    def tell(event: dict[str, Any]) -> None:
        if "outcome" in event:
            raise KeyboardInterrupt

    monkeypatch.setattr(working, "build", build)
    loaded = tiny_zoo(tmp_path)
    killed = tmp_path / "store/bundles/key"
    (killed / ".small.building-1-0123abcd/small").mkdir(parents=True)
    (killed / ".small.lock").write_text("1")
    with pytest.raises(KeyboardInterrupt):
        run_zoo(loaded, inside, tell=tell)
    assert [row["why"] for row in read_table(Store(loaded.store))] == ["checkpoint x: is broken"]
    assert not list(killed.iterdir())


def test_a_store_that_is_lost_at_the_end_is_a_sentence_that_says_what_is_kept(
    tmp_path: Path, inside: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(*_: object, **__: object) -> None:
        raise CheckpointError("checkpoint x: is broken")

    def put(*_: object) -> None:
        raise StoreError("store x: cannot be written to: connection refused")

    monkeypatch.setattr(working, "build", build)
    monkeypatch.setattr(running, "write_table", put)
    with pytest.raises(StoreError) as raised:
        run_zoo(tiny_zoo(tmp_path), inside)
    assert str(raised.value) == (
        "store x: cannot be written to: connection refused: there is no table of it; a second run keeps what was built"
    )


def test_workers_do_not_hear_ctrl_c_and_this_process_does() -> None:
    def blocked() -> set[int]:
        return signal.pthread_sigmask(signal.SIG_BLOCK, ())

    with cluster._deaf_loop() as loop:
        heard: Future[set[int]] = Future()
        loop.add_callback(lambda: heard.set_result(blocked()))
        assert signal.SIGINT in heard.result(10)
        assert signal.SIGINT not in blocked()


@pytest.mark.parametrize(
    ("before", "lines"), [("", 2), ("from coreai_recipes.zoo import cluster; cluster._quiet_tracker()", 0)]
)
def test_what_a_killed_worker_leaves_to_the_system_is_not_spoken_of(before: str, lines: int) -> None:
    left = "import multiprocessing, os; left = multiprocessing.get_context('spawn').Semaphore(); os._exit(0)"
    ended = subprocess.run([sys.executable, "-c", f"{before}\n{left}"], capture_output=True, text=True, check=True)
    assert len(ended.stderr.splitlines()) == lines


def test_what_could_not_be_built_is_not_counted_as_built(tmp_path: Path) -> None:
    passed, broken, kept = (
        Outcome(cell, "key", status, (), kept=kept)
        for cell, status, kept in zip(
            tiny_zoo(tmp_path, "[16, 4, 2]").cells, ("passed", "error", "passed"), (False, False, True), strict=True
        )
    )
    assert _counts([passed, broken, kept]) == "1 kept, 1 built, 1 not built"
    assert _counts([passed, kept]) == "1 kept, 1 built"


def test_a_fault_of_ours_is_an_outcome_too_and_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def build(*_: object, **__: object) -> None:
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr(working, "build", build)
    loaded = tiny_zoo(tmp_path)
    outcome = run_cell(Order(loaded.cells[0], "0" * 64, loaded.store, cluster_versions()))
    assert (outcome.status, outcome.why, outcome.may_mend) == ("error", "ZeroDivisionError: by zero", True)


def test_a_checkpoint_that_cannot_be_read_costs_its_own_cells_alone(
    tmp_path: Path, inside: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(TINY, tmp_path / "broken")
    (tmp_path / "broken/model.safetensors").write_bytes(b"short")
    (tmp_path / "noise.yaml").write_text("extends: tiny-llama\nname: noise\n")
    text = "recipes: [tiny-llama, ./noise.yaml]\ncheckpoints: {tiny-llama: ./broken, ./noise.yaml: random}\n"

    def build(*_: object, **__: object) -> None:
        raise UserError("the other was tried")

    monkeypatch.setattr(working, "build", build)
    broken, other = run_zoo(load_zoo(write_zoo(tmp_path, text)), inside)
    assert broken.why is not None
    assert broken.why.startswith(f"checkpoint {tmp_path}/broken: model.safetensors")
    assert other.why == "the other was tried"


def test_workers_of_other_versions_are_refused_by_name(inside: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = cluster_versions()
    monkeypatch.setattr(cluster, "cluster_versions", lambda: {**ours, "torch": "0.1"})
    with pytest.raises(UserError) as raised, open_cluster(inside, []):
        pass
    (problem,) = raised.value.problems
    assert problem.startswith("worker inproc://")
    assert problem.endswith(f": has other versions: torch {ours['torch']}, not 0.1: install the same there")


def test_a_worker_that_came_later_with_other_versions_builds_nothing(tmp_path: Path) -> None:
    loaded = tiny_zoo(tmp_path)
    outcome = run_cell(Order(loaded.cells[0], "0" * 64, loaded.store, {**cluster_versions(), "python": "2.7"}))
    assert outcome.why is not None
    assert outcome.why.startswith("this worker has other versions: python 3.")
    assert outcome.why.endswith(", not 2.7")


def test_a_scheduler_that_is_not_there_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "ANSWER_SECONDS", 1)
    with pytest.raises(UserError) as raised, open_cluster("tcp://127.0.0.1:9", []):
        pass
    assert str(raised.value).startswith("--scheduler tcp://127.0.0.1:9: no scheduler answers (")
    assert str(raised.value).endswith("): start one with `dask scheduler`, or leave it out")


def test_a_zoo_without_its_extra_says_so_before_anything_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extra, "find_spec", lambda name: None if name in ("distributed", "pyarrow") else name)
    with pytest.raises(UserError) as raised:
        run_zoo(tiny_zoo(tmp_path))
    assert str(raised.value) == (
        "the extra zoo is not installed (dask[distributed], pyarrow missing): pip install 'coreai-recipes[zoo]'"
    )
    assert not (tmp_path / "store").exists()


def test_a_store_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("a file")
    with pytest.raises(StoreError) as raised:
        run_zoo(tiny_zoo(tmp_path))
    assert str(raised.value).startswith(f"store {tmp_path}/store: cannot be written to: ")


def test_a_store_of_an_unknown_kind_is_a_sentence() -> None:
    with pytest.raises(StoreError) as raised:
        Store("nowhere://bucket")
    assert str(raised.value) == ("store nowhere://bucket: cannot be opened: ValueError: Protocol not known: nowhere")


def test_objects_and_files_are_put_whole(tmp_path: Path) -> None:
    (tmp_path / "made/deep").mkdir(parents=True)
    (tmp_path / "made/deep/file").write_bytes(b"some")
    for address in (str(tmp_path / "store"), "memory://zoo-of-a-test"):
        store = Store(address)
        assert store.get("a/b.json") is None
        store.put_json("a/b.json", {"x": 1})
        assert store.get_json("a/b.json") == {"x": 1}
        store.put_folder("folder", tmp_path / "made")
        assert store.get("folder/deep/file") == b"some"
        assert store.has("folder/deep/file")
        assert not store.has("folder/file")


def test_workers_share_a_machine_where_the_largest_cell_fits() -> None:
    assert workers_for([1, 2, 3], memory=16, processors=4) == 3
    assert workers_for([6, 6, 6, 6], memory=16, processors=4) == 2
    assert workers_for([9, 1], memory=16, processors=4) == 1
    assert workers_for([40, 5, 5], memory=16, processors=4) == 3, "what never fits is no reason to wait"
