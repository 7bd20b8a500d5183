"""`recipe evaluate`: perplexity and KL divergence of a bundle on a user's text, against transformers itself."""

import io
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from coreai_recipes import build
from coreai_recipes.bundle import Bundle
from coreai_recipes.scoring.scoring import choose_window, evaluate

Run = Callable[..., tuple[int, str, str]]
CHECKPOINT = Path(__file__).parents[1] / "checkpoints/tiny-llama"
TEXT = "The moon turns around the earth, and a day has twenty-four hours.\n" * 12


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "moon.txt"
    path.write_text(TEXT)
    return path


def test_figures_are_those_of_transformers_on_the_same_windows(tiny_bundle: Path, text: Path, run: Run) -> None:
    """The package's weights are the checkpoint's rounded to float16: next to nothing is lost."""
    arguments = ("evaluate", tiny_bundle, text, "--checkpoint", CHECKPOINT, "--window", 100, "--json")
    status, out, err = run(*arguments)
    assert (status, err) == (0, "")
    found = json.loads(out)
    ids = AutoTokenizer.from_pretrained(CHECKPOINT)(TEXT).input_ids
    bos = ids[:1] if ids[0] == AutoTokenizer.from_pretrained(CHECKPOINT).bos_token_id else []
    plain = ids[len(bos) :]
    step = 100 - len(bos)
    model = AutoModelForCausalLM.from_pretrained(CHECKPOINT, dtype=torch.float32)
    nats, tokens = 0.0, 0
    for start in range(0, len(plain), step):
        window = torch.tensor([bos + plain[start : start + step]])
        with torch.no_grad():
            nats += float(model(window, labels=window).loss) * (window.shape[1] - 1)
        tokens += window.shape[1] - 1
    assert found["all"]["perplexity"]["transformers"] == pytest.approx(math.exp(nats / tokens), rel=1e-4)
    assert found["all"]["perplexity"]["package"] == pytest.approx(math.exp(nats / tokens), rel=1e-2)
    assert found["all"]["predicted"] == tokens
    assert abs(found["all"]["kl"]["mean"]) < 1e-4
    assert found["all"]["top_1"] > 0.98
    assert found["compared_with"] == "transformers in float32, with the checkpoint's weights"


def test_weights_are_those_of_the_package(tmp_path: Path) -> None:
    """Three bits lose what float16 holds, and the fold and the scale of the exported form are undone."""
    default = "compress={default: {kind: palettize, bits: 3, group: 8}, calibration: null}"
    bundle = build(
        "tiny-llama", CHECKPOINT, tmp_path, overrides=[default, "export.residual_scale=0.25"], verified=False
    )
    found = evaluate(bundle, [("moon", TEXT)], str(CHECKPOINT))
    assert 0.1 < (found.whole.loss.kl or 0.0) < 0.7
    assert "not verified" in found.lines()[-1]


def test_without_its_checkpoint_perplexity_stands_alone_and_why_is_said(
    tiny_bundle: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(TEXT))
    status, out, _ = run("evaluate", tiny_bundle, "-")
    assert status == 0
    assert "KL" not in out
    assert "perplexity only: tiny-llama was built from tiny-llama, which is not on the hub" in out


def test_texts_that_cannot_be_evaluated_are_all_named(tiny_bundle: Path, tmp_path: Path, run: Run) -> None:
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "bytes.txt").write_bytes(b"moon \xff")
    (tmp_path / "one.txt").write_text("a")
    missing = [tmp_path / "empty.txt", tmp_path / "none.txt", tmp_path / "bytes.txt", tmp_path]
    status, out, err = run("evaluate", tiny_bundle, *missing)
    assert (status, out) == (2, "")
    assert err.splitlines() == [
        f"{tmp_path}/empty.txt: is empty: there is nothing to evaluate",
        f"{tmp_path}/none.txt: there is no such file",
        f"{tmp_path}/bytes.txt: not text in UTF-8: byte 0xff at 5",
        f"{tmp_path}: is a folder, not a file",
    ]
    status, _, err = run("evaluate", tiny_bundle, tmp_path / "one.txt")
    assert (status, err) == (2, f"{tmp_path}/one.txt: is 1 token, and perplexity needs at least two\n")
    status, _, err = run("evaluate", "tiny-lama", tmp_path / "one.txt")
    assert status == 2
    assert err.startswith("tiny-lama: ")


def test_a_script_that_the_tokenizer_spells_out_is_said(tiny_bundle: Path) -> None:
    found = evaluate(Bundle.open(tiny_bundle), [("letter", "Луна вращается вокруг Земли.")])
    assert "spells this script out byte by byte" in found.lines()[0]


def test_a_window_is_no_longer_than_the_context(tiny_bundle: Path, text: Path, run: Run) -> None:
    recipe = Bundle.open(tiny_bundle).recipe
    assert choose_window(recipe, None) == min(512, recipe.export.context)
    status, _, err = run("evaluate", tiny_bundle, text, "--window", recipe.export.context + 1)
    assert status == 2
    assert err == f"--window {recipe.export.context + 1}: the bundle's context is {recipe.export.context}, " + (
        "so use at most that many\n"
    )
