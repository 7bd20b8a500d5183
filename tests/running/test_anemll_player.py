"""ANEMLL's host, played: the same tokens as our session gives, over its package and over that of the same recipe."""

import shutil
from pathlib import Path

import pytest
import torch
import yaml

from coreai_recipes import build
from coreai_recipes.bundle import Bundle
from coreai_recipes.errors import BundleError
from coreai_recipes.hosts.anemll import META, Settings
from coreai_recipes.hosts.logits import best
from coreai_recipes.running.anemll import Player
from coreai_recipes.running.program import open_engine, open_program
from coreai_recipes.running.session import Session

CHECKPOINT = Path(__file__).parents[1] / "checkpoints/tiny-llama"
TOKENS = [(37 * index + 5) % 512 for index in range(300)]


@pytest.fixture(scope="module", params=["logits", "ids"])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    overrides = ["export.host=anemll", f"export.outputs={request.param}", "export.context=64"]
    out = tmp_path_factory.mktemp("anemll")
    return Bundle.open(build("tiny-llama", CHECKPOINT, out, overrides=overrides, verified=False).path)


def player_of(bundle: Bundle) -> Player:
    settings = Settings.read(yaml.safe_load((bundle.path / META).read_text()))
    package = settings.package.replace(".mlmodelc", ".mlpackage")
    return Player(open_engine(bundle.path / package, "evaluator"), settings)


def session_of(path: Path) -> Session:
    bundle = Bundle.open(path)
    bundle.check_package()
    return Session(open_program(path, bundle.described, "evaluator"), bundle.described)


def answer(session: Session, prompt: list[int], count: int) -> list[int]:
    text = list(prompt)
    while len(text) < len(prompt) + count:
        text.append(best(session.feed(text)))
    return text[len(prompt) :]


@pytest.mark.parametrize("length", [1, 5, 16, 17, 40])
def test_the_host_gives_the_same_tokens_as_our_session(bundle: Bundle, tiny_bundle: Path, length: int) -> None:
    prompt, player = TOKENS[:length], player_of(bundle)
    with torch.inference_mode():
        theirs = player.generate(prompt, 8, ())
        assert theirs == answer(session_of(bundle.path), prompt, 8)
        assert theirs == answer(session_of(tiny_bundle), prompt, 8)  # built for hosts of docs/bundle.md


def test_the_host_fills_batches_then_feeds_token_by_token_and_the_last_one_twice(bundle: Bundle) -> None:
    player = player_of(bundle)
    player.generate(TOKENS[:34], 2, ())
    assert player.calls == [("prefill", 0), ("prefill", 16), ("infer", 32), ("infer", 33), ("infer", 33), ("infer", 34)]


def test_an_answer_stops_before_its_end_token(bundle: Bundle) -> None:
    player = player_of(bundle)
    first, second = player.generate(TOKENS[:5], 2, ())
    assert player.generate(TOKENS[:5], 9, {second}) == ([first] if first != second else [])


def test_a_full_context_goes_on_with_its_last_batches(bundle: Bundle) -> None:
    """From two positions before its end on: the state starts anew with the last 32 tokens, as our session then does."""
    player = player_of(bundle)
    found = player.generate(TOKENS[:60], 6, ())
    text = TOKENS[:60] + found[:2]
    assert player.calls[-6:-4] == [("prefill", 0), ("prefill", 16)]
    assert found[2:] == answer(session_of(bundle.path), text[-32:], 4)


def test_verify_knows_the_package_of_another_host(bundle: Bundle) -> None:
    """Its functions have other names; one that is called by ours is not what the manifest says."""
    assert bundle.described.host == "anemll"
    bundle.check_files()
    bundle.check_package()


def test_a_manifest_that_hides_its_host_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    copy = tmp_path / "tiny-llama"
    shutil.copytree(bundle.path, copy)
    manifest = copy / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"host": "anemll",', ""))
    with pytest.raises(BundleError) as caught:
        _ = Bundle.open(copy).recipe
    assert str(caught.value) == f"{copy}: manifest.json: host is None and must be 'anemll', by its recipe.yaml"
