"""The host in Swift against the evaluator: the same tokens, and the same calls, as the session in Python.

Wherever `swiftc` is found: another `swift` is no toolchain. Its packages are run here: a call comes as a line of JSON,
and its outputs go back.
"""

import base64
import json
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_delta import save_delta, small_delta

from coreai_recipes import build
from coreai_recipes.bundle import Bundle
from coreai_recipes.hosts.logits import best
from coreai_recipes.running.program import SavedProgram, open_engine, open_program
from coreai_recipes.running.session import Session

SOURCES = Path(__file__).parents[2] / "hosts/swift"
CHECKPOINT = Path(__file__).parents[1] / "checkpoints/tiny-llama"
TOKENS = [(37 * index + 5) % 512 for index in range(80)]

pytestmark = pytest.mark.skipif(shutil.which("swiftc") is None, reason="there is no Swift toolchain")


@pytest.fixture(scope="session")
def player(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command that plays, built."""
    scratch = ["--package-path", str(SOURCES), "--scratch-path", str(tmp_path_factory.mktemp("swift"))]
    made = subprocess.run(["swift", "build", *scratch, "--product", "recipe-play"], capture_output=True, text=True)
    assert made.returncode == 0, made.stdout + made.stderr
    return ["swift", "run", *scratch, "--skip-build", "recipe-play"]


@dataclass
class Played:
    """What the host answered to each prompt and why it ended, and its calls: function and position."""

    answers: list[list[int]] = field(default_factory=list)
    ends: list[str] = field(default_factory=list)
    calls: list[tuple[str, int]] = field(default_factory=list)


def play(command: list[str], bundle: Path, prompts: list[list[int]], max_tokens: int, drafts: bool = False) -> Played:
    described = Bundle.open(bundle).described
    engines = [open_engine(bundle / program.file, "evaluator") for program in described.programs]
    states: dict[tuple[int, int], Any] = {}
    played = Played()
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        task = {"bundle": str(bundle), "prompts": prompts, "maxTokens": max_tokens, "drafts": drafts}
        process.stdin.write(json.dumps(task) + "\n")
        for line in process.stdout:
            said = json.loads(line)
            if "answer" in said:
                played.answers.append(said["answer"])
                played.ends.append(said["end"])
                continue
            number = said["package"]
            state = states.setdefault((number, said["state"]), engines[number].make_state())
            inputs = {name: tensor_of(wire) for name, wire in said["inputs"].items()}
            with torch.inference_mode():
                outputs = engines[number].function(said["function"])(inputs, state)
            first = next(at for at, each in enumerate(described.programs) if said["function"] in each.functions)
            if number == first:
                played.calls.append((said["function"], int(inputs["position"])))
            process.stdin.write(json.dumps({name: wire_of(value) for name, value in outputs.items()}) + "\n")
        assert process.wait() == 0
    return played


def tensor_of(wire: dict[str, Any]) -> torch.Tensor:
    values = np.frombuffer(base64.b64decode(wire["data"]), wire["dtype"]).reshape(wire["shape"])
    return torch.from_numpy(values.copy())


def wire_of(tensor: torch.Tensor) -> dict[str, Any]:
    values = tensor.to(torch.int32 if not tensor.is_floating_point() else torch.float16).contiguous().numpy()
    return {
        "dtype": str(values.dtype),
        "shape": list(values.shape),
        "data": base64.b64encode(values.tobytes()).decode(),
    }


class Noted(SavedProgram):
    """A program that notes its calls."""

    def __init__(self, program: SavedProgram) -> None:
        super().__init__(program._engine, program._tables, program._shapes, caches=program._caches)
        self.calls: list[tuple[str, int]] = []

    def call(self, function: str, inputs: Any, watch: Any = None) -> dict[str, torch.Tensor]:
        self.calls.append((function, int(inputs["position"])))
        return super().call(function, inputs, watch)


def ours(bundle: Path, prompts: list[list[int]], max_tokens: int, drafts: bool = False) -> Played:
    """As `play`, by the session in Python. Logits are rounded as Core ML's are."""
    described = Bundle.open(bundle).described
    program = Noted(open_program(bundle, described, "evaluator"))
    session, played = Session(program, described), Played()

    def pick(choice: torch.Tensor) -> int:
        return best(choice.to(torch.float16).float() if choice.is_floating_point() else choice)

    for prompt in prompts:
        text = list(prompt)
        with torch.inference_mode():
            if drafts:
                for round_ in session.speculate(prompt, max_tokens, pick):
                    text += round_.tokens
            while not drafts and len(text) < len(prompt) + max_tokens:
                text.append(pick(session.feed(text)))
        answer = text[len(prompt) :]
        stop = next((at for at, token in enumerate(answer) if token in described.eos_token_ids), None)
        played.answers.append(answer[:stop])
        played.ends.append("length" if stop is None else "stop")
    played.calls = program.calls
    return played


def test_prompts_of_every_length_give_the_same_tokens_by_the_same_calls(player: list[str], tiny_bundle: Path) -> None:
    """The third goes on from the second, and the fourth shares its first 20 tokens: the prefix is not fed again."""
    prompts = [TOKENS[:1], TOKENS[:37], TOKENS[:45], [*TOKENS[:20], 7, 8, 9]]
    assert play(player, tiny_bundle, prompts, 6) == ours(tiny_bundle, prompts, 6)


def test_rings_tables_and_both_scales_of_going_back(player: list[str], gemma4_tiny_bundle: Path) -> None:
    """Back by less than a ring has to spare, and by more, where all is fed again."""
    prompts = [TOKENS[:40], [*TOKENS[:38], 7], [*TOKENS[:5], 7, 8]]
    assert play(player, gemma4_tiny_bundle, prompts, 4) == ours(gemma4_tiny_bundle, prompts, 4)


def test_a_draft_guesses_and_the_text_stays_the_models_own(player: list[str], gemma4_tiny_bundle: Path) -> None:
    prompts = [TOKENS[:20], TOKENS[:33]]
    found = play(player, gemma4_tiny_bundle, prompts, 12, drafts=True)
    assert found == ours(gemma4_tiny_bundle, prompts, 12, drafts=True)
    assert found.answers == play(player, gemma4_tiny_bundle, prompts, 12).answers


def test_three_packages_and_a_table_of_the_hosts_say_what_one_package_says(
    player: list[str], gemma4_tiny_bundle: Path, tmp_path: Path
) -> None:
    """Each with a state of its own; a draft's rows are the host's too."""
    overrides = ["export.chunks=3", "export.table=host"]
    cut = build("gemma4-tiny", out=tmp_path, overrides=overrides, verified=False)
    assert len(cut.described.programs) == 3
    prompts = [TOKENS[:40], [*TOKENS[:38], 7]]
    whole = [ours(gemma4_tiny_bundle, prompts, 6, drafts).answers for drafts in (False, True)]
    assert [play(player, cut.path, prompts, 6, drafts).answers for drafts in (False, True)] == whole


def test_caches_that_the_host_keeps_say_what_states_say(
    player: list[str], gemma4_tiny_bundle: Path, tmp_path: Path
) -> None:
    """Rings and full caches of two packages, which a draft reads too."""
    overrides = ["export.cache=functional", "export.chunks={count: 2, share: pass}"]
    kept = build("gemma4-tiny", out=tmp_path, overrides=overrides, verified=False)
    assert kept.described.states == {}
    prompts = [TOKENS[:40], [*TOKENS[:38], 7], [*TOKENS[:5], 7, 8]]
    for drafts in (False, True):
        found = play(player, kept.path, prompts, 6, drafts)
        assert found == ours(kept.path, prompts, 6, drafts)
        assert found.answers == ours(gemma4_tiny_bundle, prompts, 6, drafts).answers


@pytest.mark.parametrize("cache", ["state", "functional"])
def test_what_layers_carry_is_kept_and_gone_back_to(player: list[str], tmp_path: Path, cache: str) -> None:
    """Two recurrences and the convolutions before them, beside an attention: a new end of a prompt feeds few tokens."""
    recipe, _ = save_delta(small_delta(512), tmp_path / "delta", cache=cache)
    for file in CHECKPOINT.glob("*token*"):
        shutil.copy(file, tmp_path / "delta")
    bundle = build(recipe, tmp_path / "delta", tmp_path / "built", verified=False)
    prompts = [TOKENS[:40], TOKENS[:40], [*TOKENS[:38], 7], [*TOKENS[:20], 7, 8], TOKENS[60:70]]
    found = play(player, bundle.path, prompts, 4)
    assert found == ours(bundle.path, prompts, 4)
    assert len(found.calls) < sum(len(prompt) // 16 + 1 + 4 for prompt in prompts)


def test_a_bundle_for_another_host_is_refused(player: list[str], tiny_bundle: Path, tmp_path: Path) -> None:
    said = json.loads((tiny_bundle / "manifest.json").read_text()) | {"host": "anemll"}
    (tmp_path / "manifest.json").write_text(json.dumps(said))
    task = {"bundle": str(tmp_path), "prompts": [[1]], "maxTokens": 1, "drafts": False}
    found = subprocess.run(player, input=json.dumps(task) + "\n", capture_output=True, text=True)
    assert (found.returncode, found.stdout) == (2, "")
    assert found.stderr.endswith("manifest.json: the bundle is for the host anemll\n")
