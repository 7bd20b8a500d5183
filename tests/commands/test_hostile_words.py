"""Words of a command line, lines of a chat and paths that nobody means: a sentence each, before anything is done."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from terminals import run_on_pipes

from coreai_recipes import UserError
from coreai_recipes.checkpoint.open import open_checkpoint, open_config, open_headers
from coreai_recipes.generate import Sampler
from coreai_recipes.recipe.plugins import load_plugin

TINY = Path(__file__).parents[1] / "checkpoints/tiny-llama"
Run = Callable[..., tuple[int, str, str]]


def short(value: object) -> str:
    """An id that the environment of a test can hold."""
    return ascii(value)[1:40].replace("/", "|")


def test_a_prompt_that_is_not_utf8_is_refused_wherever_it_comes_from(tiny_bundle: Path, run: Run) -> None:
    status, _, err = run("run", tiny_bundle, "abc\udcff")
    assert (status, err) == (2, "PROMPT: not UTF-8: byte 0xff after 3 characters\n")
    status, _, err = run("run", tiny_bundle, "abc", "--system", "\udcc3(")
    assert (status, err) == (2, "--system: not UTF-8: byte 0xc3 after 0 characters\n")
    ended = run_on_pipes("run", tiny_bundle, "-", typed=b"caf\xe9 au lait")
    assert ended == (2, b"", b"standard input: not UTF-8: byte 0xe9 after 3 characters\n")
    ended = run_on_pipes("run", tiny_bundle, b"caf\xe9")
    assert ended == (2, b"", b"PROMPT: not UTF-8: byte 0xe9 after 3 characters\n")


def test_a_line_of_a_chat_that_is_not_utf8_ends_its_turn_alone(tiny_bundle: Path) -> None:
    lines = b"caf\xe9\nIn the beginning\n/quit\nnever read\n"
    status, out, err = run_on_pipes("chat", tiny_bundle, "--max-tokens", 2, typed=lines)
    assert status == 0
    assert out.strip()
    assert b"the line: not UTF-8: byte 0xe9 after 3 characters\n" in err
    assert err.count(b" tokens, ") == 1


def test_a_standard_input_that_cannot_be_read_is_a_sentence(tiny_bundle: Path, run: Run) -> None:
    closed = "import sys\nsys.stdin = None"
    ended = run_on_pipes("run", tiny_bundle, "-", before=closed)
    assert ended == (2, b"", b"standard input: cannot be read: it is closed\n")
    folder = "import os\nos.dup2(os.open('/', os.O_RDONLY), 0)"
    ended = run_on_pipes("run", tiny_bundle, "-", before=folder)
    assert ended == (2, b"", b"standard input: cannot be read: is a directory\n")
    endless = "import os\nos.dup2(os.open('/dev/zero', os.O_RDONLY), 0)"
    ended = run_on_pipes("run", tiny_bundle, "-", before=endless)
    assert ended == (2, b"", b"standard input: more than 16 MiB, too much for a prompt\n")


@pytest.mark.parametrize("opens", [open_checkpoint, open_headers, open_config])
@pytest.mark.parametrize(
    "path",
    ["a" * 5000, "/".join(["a" * 200] * 30), "~nosuchuser/model", "a\0b", "/nowhere/\udcff", "embedded:" + "a" * 300],
)
def test_a_path_that_cannot_be_is_no_checkpoint(opens: Callable[[str], object], path: str) -> None:
    with pytest.raises(UserError, match="no such"):
        opens(path)


@pytest.mark.parametrize("opens", [open_checkpoint, open_headers, open_config])
def test_a_folder_that_may_not_be_listed_is_a_sentence(
    opens: Callable[[str], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text("{}")

    def refuse(self: Path) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(UserError) as caught:
        opens(str(tmp_path))
    assert str(caught.value) == f"checkpoint {tmp_path}: cannot be read: Permission denied"


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_circle_of_links_in_a_files_place_is_a_sentence(name: str, tmp_path: Path, run: Run) -> None:
    for file in TINY.iterdir():
        (tmp_path / file.name).symlink_to(name if file.name == name else file)
    arguments = ("--checkpoint", tmp_path, "--out", tmp_path / "dist", "--no-verify")
    status, _, err = run("build", "tiny-llama", *arguments)
    assert status == 2
    assert str(tmp_path) in err
    assert "fault of recipe's own" not in err


@pytest.mark.parametrize("seed", [2**64, 10**30, -1, -(2**63) - 1])
def test_a_seed_that_no_generator_takes_is_refused(seed: int) -> None:
    with pytest.raises(UserError, match="is not in"):
        Sampler(1.0, seed=seed)


@pytest.mark.parametrize("words", [("run", "nowhere", "In the"), ("chat", "nowhere")], ids=["run", "chat"])
def test_numbers_are_refused_before_a_bundle_is_opened(words: tuple[str, ...], run: Run) -> None:
    """A large one takes minutes to be opened."""
    status, _, err = run(*words, "--temperature", "inf", f"--seed={2**64}")
    assert status == 2
    assert err.splitlines() == [
        "temperature inf must be 0 or more; 0 is greedy",
        f"seed {2**64} is not in [0, 2**64); without it, every answer differs",
    ]


def test_the_largest_seed_and_a_huge_number_of_tokens_are_taken(tiny_bundle: Path, run: Run) -> None:
    words = ("--max-tokens", 10**30, "--temperature", 1, "--seed", 2**64 - 1)
    assert run("run", tiny_bundle, "In the", *words)[0] == 0


ODD_OVERRIDES = [
    *("", "=", "a", "=1", "export.context", "export.context=", "export.context=\udcff", "export..context=1", ".=1"),
    *("export.context=" + "[" * 2000, "export.context=&a [*a]", "model=1", "export.context=1e999"),
    *("export.context=!!python/object:os.system x", "a" * 5000 + "=1", "export.context=" + "9" * 5000),
    *("model.kinds.full.attention.num_heads=.nan", "model.layers=[" + "full," * 5000 + "]", "name=../../x", "\0=\0"),
]


@pytest.mark.parametrize("override", ODD_OVERRIDES, ids=short)
def test_an_odd_override_is_a_sentence(override: str, run: Run) -> None:
    status, out, err = run("plan", "tiny-llama", "--set", override)
    assert (status, out) == (2, "")
    assert err.startswith("--set ")
    assert "fault of recipe's own" not in err


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("raise SystemExit(3)", ":1: raises SystemExit: 3"),
        ("raise KeyboardInterrupt", ":1: raises KeyboardInterrupt"),
        ("raise GeneratorExit", ":1: raises GeneratorExit"),
        ("raise BaseException('a\\nb')", ":1: raises BaseException: a"),
        ("raise MemoryError", ":1: raises MemoryError"),
        ("def f():\n    f()\nf()", ":2: raises RecursionError: maximum recursion depth exceeded"),
        ("def f(:", ":1: is not valid Python: invalid syntax"),
        ("x = '\0'", ": is not valid Python: source code string cannot contain null bytes"),
        ("class E(BaseException):\n    def __str__(self):\n        raise E\nraise E", ":4: raises E"),
        ("import sys\nsys.stdout.close()\n1 / 0", ":3: raises ZeroDivisionError: division by zero"),
    ],
    ids=short,
)
def test_a_plugin_that_raises_anything_is_a_sentence(body: str, said: str, tmp_path: Path, run: Run) -> None:
    (tmp_path / "plugin.py").write_text(body)
    status, out, err = run("validate", "tiny-llama", "--plugin", tmp_path / "plugin.py")
    assert (status, out) == (2, "")
    assert err.startswith(f"{tmp_path / 'plugin.py'}{said}")
    assert len(err.splitlines()) == 1


def test_ctrl_c_while_a_plugin_is_imported_is_one(tmp_path: Path) -> None:
    (tmp_path / "plugin.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)")
    ended = run_on_pipes("validate", "tiny-llama", "--plugin", tmp_path / "plugin.py")
    assert ended == (130, b"", b"interrupted\n")


@pytest.mark.parametrize("path", ["a" * 5000, "~nosuchuser/x.py", "a\0b", "loop.py", ""], ids=short)
def test_a_plugin_that_is_no_file_is_a_sentence(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    os.symlink("loop.py", "loop.py")
    with pytest.raises(UserError, match=r"no such file|a folder"):
        load_plugin(path)


@pytest.mark.parametrize(
    ("name", "value"),
    [("HF_ENDPOINT", "http://127.0.0.1:99999"), ("HF_ENDPOINT", "http://[::1"), ("HF_HUB_ETAG_TIMEOUT", "soon")],
)
def test_a_hubs_setting_that_cannot_be_is_named(name: str, value: str) -> None:
    ours = {key: word for key, word in os.environ.items() if not key.startswith("HF_")}
    status, out, err = run_on_pipes("new", "org/model", env={**ours, name: value})
    assert (status, out) == (2, b"")
    assert err.startswith(f"checkpoint org/model: huggingface_hub cannot take {name} as set: ".encode())
    assert len(err.splitlines()) == 1


def test_a_recipe_is_not_written_over_a_folder(tmp_path: Path, run: Run) -> None:
    for place in (tmp_path, tmp_path / "a/b.yaml", tmp_path / ("a" * 300), "/dev/full/x"):
        status, _, err = run("new", TINY, "-o", place)
        assert status == 2
        assert err.startswith(f"{place}: ")
        assert "fault of recipe's own" not in err


RAISES = """
from typing import Any, Literal
import torch
from coreai_recipes.extending import register
from coreai_recipes.primitives.mlp import GatedMLP
from coreai_recipes.recipe.schema import GatedMLP as Spec

class Mine(Spec):
    kind: Literal["mine"]

@register("mlp", spec=Mine)
class MyMLP(GatedMLP):
    def __init__(self, spec: Any, hidden_size: int) -> None:
        {0}
        super().__init__(spec, hidden_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        {1}
        return super().forward(x)
"""


@pytest.mark.parametrize(
    ("made", "called", "line"),
    [("1 / 0", "pass", 14), ("raise SystemExit(0)", "pass", 14), ("pass", "raise KeyError('x')", 18)],
)
def test_a_plugin_that_raises_while_it_is_used_is_named_with_its_line(
    made: str, called: str, line: int, tmp_path: Path
) -> None:
    plugin = tmp_path / "mine.py"
    plugin.write_text(RAISES.format(made, called))
    override = "model.kinds.full.mlp.kind=mine"
    words = ("build", "tiny-llama", "--checkpoint", TINY, "--out", tmp_path / "dist", "--no-verify", "--set", override)
    status, out, err = run_on_pipes(*words, "--set", "reference=null", "--plugin", plugin)
    assert (status, out) == (2, b""), err
    assert err.startswith(f"{plugin}:{line}: raises ".encode())
    assert err.endswith(b"; RECIPE_TRACEBACK=1 shows the traceback\n")
    assert len(err.splitlines()) == 1
