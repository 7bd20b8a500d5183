"""`export.cache: functional`: the host keeps keys and values, and a bundle says what one with states says."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from running.chunks import assert_same, in_precision, rounds

from coreai_recipes import build, load_recipe
from coreai_recipes.bundle.opened import Bundle
from coreai_recipes.errors import RecipeError
from coreai_recipes.evaluate import Program
from coreai_recipes.evaluate.package_reader import Package
from coreai_recipes.running.session import Session

TINY = Path(__file__).parents[1] / "checkpoints/tiny-llama"
FUNCTIONAL = "export.cache=functional"
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def functional(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return build("tiny-llama", TINY, tmp_path_factory.mktemp("functional"), overrides=(FUNCTIONAL,), verified=False)


@pytest.fixture(scope="module")
def gemma_functional(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Rings and full caches, which layers of later packages and a draft read."""
    said = (FUNCTIONAL, "export.chunks={count: 2, share: pass}")
    return build("gemma4-tiny", None, tmp_path_factory.mktemp("gemma"), overrides=said, verified=False)


def test_keys_and_values_are_inputs_and_their_new_rows_outputs(functional: Bundle) -> None:
    manifest = functional.described
    assert manifest.states == {}
    assert manifest.host_caches.keys() == {"kv_full"}
    kept = manifest.host_caches["kv_full"]
    assert (kept.role, kept.rollback, kept.shape, kept.kinds["full"].count) == ("kv", "rows", (8, 2, 288, 32), 4)
    for name, query in (("decode", 1), ("prefill", 16)):
        function = manifest.functions[name]
        assert function.inputs["kv_full"].shape == kept.shape
        assert function.outputs["new_kv_full"].shape == (8, 2, query, 32)
    for _, _, states in Package(functional.path / "model.mlpackage", checked=False).signatures().values():
        assert states == {}


@pytest.mark.usefixtures("small_tensors")
def test_a_host_that_keeps_the_caches_is_told_the_same(tiny_bundle: Path, functional: Bundle) -> None:
    assert_same(Bundle.open(tiny_bundle), functional)


@pytest.mark.usefixtures("small_tensors")
def test_rings_shared_caches_packages_and_a_draft_are_the_same(
    gemma4_tiny_bundle: Path, gemma_functional: Bundle
) -> None:
    one, programs = Bundle.open(gemma4_tiny_bundle), gemma_functional.described.programs
    taken = [{port for port in each.functions["decode"].inputs if "kv_" in port or "keys" in port} for each in programs]
    assert taken == [{"kv_sliding_1", "kv_full_1"}, {"handed_keys_2", "handed_keys_3"}]
    assert {"kv_sliding_1", "kv_full_1"} <= gemma_functional.described.functions["draft"].inputs.keys()
    assert_same(one, gemma_functional)
    prompt = [(7 * index + 3) % 2048 for index in range(40)]
    assert rounds(one, prompt, 24) == rounds(gemma_functional, prompt, 24)


def test_the_host_writes_real_tokens_alone(functional: Bundle) -> None:
    """A padded call leaves the rows behind its tokens as they were; a session that goes back overwrites its own."""
    program = in_precision(functional, "float32")
    session = Session(program, functional.described)
    session.feed(range(20))
    held = program.states["kv_full"]
    assert held[:, :, :20].abs().amax((0, 1, 3)).gt(0).all()
    assert not held[:, :, 20:].any()
    first = held.clone()
    session.feed([*range(18), 7])
    assert torch.equal(held[:, :, :18], first[:, :, :18])
    assert not torch.equal(held[:, :, 18], first[:, :, 18])
    kept = session.keep()
    assert kept is not None
    answer = session.feed([*range(18), 7, 9])
    session.feed([5, 6])
    session.restore(kept)
    assert torch.equal(session.feed([*range(18), 7, 9]), answer)


def test_rows_come_back_and_the_cache_does_not(functional: Bundle) -> None:
    """A call must not write into what it is given: the host alone does."""
    function = Program(functional.path / "model.mlpackage").function("decode")
    kept = torch.ones(8, 2, 288, 32)
    given = {"input_ids": torch.tensor([[5]]).int(), "position": torch.tensor([3]).int(), "kv_full": kept}
    rows = function(given)["new_kv_full"]
    assert kept.eq(1).all()
    assert rows.shape == (8, 2, 1, 32)


def test_every_command_takes_a_bundle_without_states(functional: Bundle, tmp_path: Path, run: Run) -> None:
    status, _, err = run("verify", functional.path, "--checkpoint", TINY, "--stage", "package")
    assert (status, err) == (0, "")
    assert run("lint", functional.path)[0] == 0
    asked = ["In the beginning", "--raw", "--max-tokens", "3", "--runtime", "evaluator"]
    cached = [*asked, "--prompt-cache", tmp_path / "kept"]
    answers = {run("run", functional.path, *each)[1] for each in (asked, cached, cached)}
    assert len(answers) == 1


def test_a_chip_that_refuses_the_states_is_given_none(run: Run) -> None:
    status, out, err = run("plan", "gemma4-tiny", "--device", "M1")
    assert (status, err) == (0, "")
    assert "state-uniform: mended by --set export.cache=functional" in out.splitlines()
    assert "build --device chooses export.cache: functional" in out.splitlines()
    status, out, _ = run("plan", "tiny-llama", "--device", "M1")  # of one geometry
    assert (status, "chooses export.cache" in out) == (0, False)


@pytest.mark.parametrize(
    ("field", "said"),
    [
        ("export.host=anemll", "export.cache: anemll keeps no caches outside a state"),
        ("export.format=coreai", "export.cache: caches that the host keeps are not proven in an .aimodel yet"),
    ],
)
def test_who_takes_no_caches_of_a_host_is_named(field: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        load_recipe("tiny-llama", overrides=(FUNCTIONAL, field))
