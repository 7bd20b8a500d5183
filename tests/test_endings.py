"""How a command ends when it is stopped, when nobody takes what it writes, and when something breaks."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from terminals import command, run_on_pipes

TINY = Path(__file__).parent / "checkpoints/tiny-llama"
FULL = Path("/dev/full")
Run = Callable[..., tuple[int, str, str]]
KILL = "os.kill(os.getpid(), signal.{})"


def when_importing(module: str, then: str) -> str:
    """Python that does something while `module` is being imported."""
    return f"""
import importlib.abc, os, signal, sys
class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == {module!r}:
            {then}
sys.meta_path.insert(0, Finder())
"""


def while_converting(then: str) -> str:
    return f"""
import os, shutil, signal, coreai_recipes.targets.coreml.convert as convert
def stop(fragment, traced):
    {then}
convert.convert_fragment = stop
"""


def build(out: Path) -> tuple[object, ...]:
    return "build", "tiny-llama", "--checkpoint", TINY, "--out", out, "--no-cache", "--no-verify"


@pytest.mark.parametrize(
    "module", ["coreai_recipes.terminal.streams", "coreai_recipes.commands", "typer", "pydantic", "torch"]
)
def test_ctrl_c_while_something_is_imported_is_one_word(module: str) -> None:
    ended = run_on_pipes("plan", "tiny-llama", before=when_importing(module, KILL.format("SIGINT")))
    assert ended == (130, b"", b"interrupted\n")


def test_an_interrupt_that_a_library_turns_into_another_error_is_still_one() -> None:
    turned = f"""
            try:
                {KILL.format("SIGINT")}
            except KeyboardInterrupt:
                raise ImportError("numpy could not be imported") from None
"""
    ended = run_on_pipes("plan", "tiny-llama", before=when_importing("torch", turned.strip()))
    assert ended == (130, b"", b"interrupted\n")


@pytest.mark.parametrize(
    ("name", "status", "said"),
    [("SIGINT", 130, b"interrupted\n"), ("SIGTERM", 143, b"terminated\n"), ("SIGHUP", 129, b"hung up\n")],
)
def test_a_build_that_is_stopped_leaves_nothing(tmp_path: Path, name: str, status: int, said: bytes) -> None:
    ended = run_on_pipes(*build(tmp_path), before=while_converting(KILL.format(name)))
    assert ended == (status, b"", said)
    assert list(tmp_path.iterdir()) == []


def test_a_second_ctrl_c_waits_for_the_clean_up(tmp_path: Path) -> None:
    again = f"""
    remove = shutil.rmtree
    def remove_and_interrupt(*arguments, **options):
        {KILL.format("SIGINT")}
        remove(*arguments, **options)
    shutil.rmtree = remove_and_interrupt
    {KILL.format("SIGINT")}"""
    ended = run_on_pipes(*build(tmp_path), before=while_converting(again.strip()))
    assert ended == (130, b"", b"interrupted\n")
    assert list(tmp_path.iterdir()) == []


def test_a_third_ctrl_c_ends_at_once() -> None:
    endless = """
            try:
                os.kill(os.getpid(), signal.SIGINT)
            finally:
                for _ in range(9):
                    os.kill(os.getpid(), signal.SIGINT)
"""
    status, out, _ = run_on_pipes("plan", "tiny-llama", before=when_importing("torch", endless.strip()))
    assert (status, out) == (130, b"")


TURNS = """
import os, signal, coreai_recipes.tokenizer.streaming as streaming
pieces = iter(["one ", {0}, "two "])
def add(self, token):
    piece = next(pieces, "three ")
    return piece if isinstance(piece, str) else os.kill(os.getpid(), piece)
streaming.TextStream.add = add
"""


def test_ctrl_c_ends_a_turn_of_a_chat_and_a_second_one_in_the_next_too(tiny_bundle: Path) -> None:
    turns = TURNS.format("signal.SIGINT, 'two ', signal.SIGINT")
    talk = ("chat", tiny_bundle, "--max-tokens", 3)
    status, out, err = run_on_pipes(*talk, before=turns, typed=b"In the\nand\nthen\n/quit\n")
    assert status == 0, err
    assert err.count(b"interrupted\n") == 2
    assert out.count(b"one ") == 1
    assert out.endswith(b"two three three \n")


def test_sigterm_in_a_turn_ends_the_chat(tiny_bundle: Path) -> None:
    talk = ("chat", tiny_bundle, "--max-tokens", 3)
    status, _, err = run_on_pipes(*talk, before=TURNS.format("signal.SIGTERM"), typed=b"In the\nand\n")
    assert (status, err) == (143, b"not verified\nterminated\n")


def test_ctrl_c_while_python_exits_shows_no_traceback() -> None:
    late = f"import atexit, os, signal\natexit.register(lambda: {KILL.format('SIGINT')})"
    status, out, err = run_on_pipes("validate", "tiny-llama", before=late)
    assert (status, out, err) == (130, b"tiny-llama: valid\n", b"")


def test_who_called_the_entry_point_and_goes_on_can_be_interrupted() -> None:
    calls = """
import os, signal, sys
from coreai_recipes import cli
sys.argv = ["recipe", "validate", "tiny-llama"]
try:
    cli.main()
except SystemExit:
    pass
try:
    os.kill(os.getpid(), signal.SIGINT)
except KeyboardInterrupt:
    print("once")
os.kill(os.getpid(), signal.SIGTERM)
"""
    done = subprocess.run([sys.executable, "-c", calls], capture_output=True, check=False)
    assert done.stdout == b"tiny-llama: valid\nonce\n"
    assert b"KeyboardInterrupt" in done.stderr


def test_a_signal_that_was_ignored_stays_so() -> None:
    nohup = "import os, signal\nsignal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
    ended = run_on_pipes("validate", "tiny-llama", before=nohup + when_importing("typer", KILL.format("SIGHUP")))
    assert ended == (0, b"tiny-llama: valid\n", b"")


COMMANDS = [
    ("--help",),
    ("--version",),
    ("list",),
    ("show", "tiny-llama"),
    ("validate", "tiny-llama"),
    ("new", TINY),
    ("diff", "tiny-llama", "smollm2-135m"),
    ("plan", "tiny-llama", "--json"),
    ("build", "--help"),
    ("schema",),
]


@pytest.mark.skipif(not FULL.exists(), reason="no /dev/full on this system")
@pytest.mark.parametrize("arguments", COMMANDS, ids=lambda words: " ".join(map(str, words)).replace("/", "|"))
def test_a_result_that_cannot_be_written_is_a_sentence(arguments: tuple[object, ...]) -> None:
    with FULL.open("wb") as full:
        done = subprocess.run(command(*arguments), stdout=full, stderr=subprocess.PIPE, check=False)
    said = done.stderr.splitlines()[-1]
    assert (done.returncode, said) == (2, b"standard output: cannot be written: no space left on device")
    assert b"Traceback" not in done.stderr


@pytest.mark.skipif(not FULL.exists(), reason="no /dev/full on this system")
def test_an_answer_that_cannot_be_written_is_a_sentence(tiny_bundle: Path) -> None:
    with FULL.open("wb") as full:
        words = command("run", tiny_bundle, "In the beginning", "--max-tokens", 4)
        done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 2
    assert done.stderr == b"not verified\nstandard output: cannot be written: no space left on device\n"


@pytest.mark.skipif(not FULL.exists(), reason="no /dev/full on this system")
def test_a_standard_error_that_cannot_be_written_costs_no_result(tiny_bundle: Path) -> None:
    with FULL.open("wb") as full:
        words = command("run", tiny_bundle, "In the beginning", "--max-tokens", 4)
        done = subprocess.run(words, stdout=subprocess.PIPE, stderr=full, check=False)
    assert done.returncode == 0
    assert done.stdout.strip()


def test_a_closed_standard_output_is_a_sentence() -> None:
    words = ["sh", "-c", '"$@" >&-', "sh", *command("list")]
    done = subprocess.run(words, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (2, b"standard output: cannot be written: it is closed\n")


@pytest.mark.parametrize("arguments", [("list",), ("--help",)])
def test_a_reader_that_leaves_ends_a_command_quietly(arguments: tuple[object, ...]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(command(*arguments), stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


def test_a_reader_that_leaves_ends_an_answer_quietly(tiny_bundle: Path) -> None:
    endless = 'import coreai_recipes.tokenizer.streaming as s\ns.TextStream.add = lambda *_: "more and more of it\\n"'
    words = command("run", tiny_bundle, "In the beginning", "--max-tokens", 200, before=endless)
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"more and more of it\n"
        process.stdout.close()
        said = process.stderr.read()
    assert (process.returncode, said) == (141, b"not verified\n")


@pytest.mark.parametrize("encoding", ["ascii", "utf-16"])
def test_what_an_encoding_cannot_show_is_spelt_out(encoding: str, tiny_bundle: Path) -> None:
    speaks = (
        'import coreai_recipes.tokenizer.streaming as s\ns.TextStream.add = lambda *_: "\\u2192\\ud83d \\U0001f600"'
    )
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    words = ("run", tiny_bundle, "In the", "--max-tokens", 1)
    status, out, err = run_on_pipes(*words, before=speaks, env=environment)
    assert status == 0, err
    expected = {"utf-16": "→\\ud83d 😀\n"}.get(encoding, "\\u2192\\ud83d \\U0001f600\n")
    assert out.decode(encoding) == expected
    assert run_on_pipes("--help" if encoding == "ascii" else "list", env=environment)[0] == 0


def test_an_empty_environment_is_enough(tmp_path: Path, tiny_bundle: Path) -> None:
    for words in (("validate", "tiny-llama"), ("new", TINY), ("run", tiny_bundle, "In the", "--max-tokens", 1)):
        status, out, err = run_on_pipes(*words, env={})
        assert (status, bool(out)) == (0, True), err


@pytest.mark.parametrize("arguments", [("list",), ("plan", "tiny-llama"), ("run", "dist/tiny-llama", "hello")])
def test_a_working_folder_that_was_removed_is_a_sentence(arguments: tuple[str, ...]) -> None:
    gone = "import os, tempfile\nfolder = tempfile.mkdtemp()\nos.chdir(folder)\nos.rmdir(folder)"
    status, out, err = run_on_pipes(*arguments, before=gone)
    assert (status, out) == (2, b"")
    assert err == b"the working directory no longer exists: change to another directory\n"


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("a detail"),
        MemoryError(),
        RecursionError("maximum recursion depth exceeded"),
        ValueError("a detail\nover\ntwo lines"),
        BrokenPipeError(32, "a pipe of somebody else's"),
        ChildProcessError(10, "No child processes"),
        SystemExit("a word"),
        EOFError(),
        GeneratorExit(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_whatever_escapes_is_one_sentence_and_status_70(
    error: BaseException, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr("coreai_recipes.recipe.list_recipes", fail)
    monkeypatch.delenv("RECIPE_TRACEBACK", raising=False)
    status, out, err = run("list")
    assert (status, out) == (70, "")
    assert err.startswith(f"recipe list: {type(error).__name__}")
    assert "this is a bug in recipe: please report it with the traceback that RECIPE_TRACEBACK=1 shows\n" in err
    assert len(err.splitlines()) == 1
    monkeypatch.setenv("RECIPE_TRACEBACK", "1")
    status, _, err = run("list")
    assert status == 70
    assert err.startswith("Traceback (most recent call last):\n")
    assert "recipe list: " in err.splitlines()[-1]


def test_nothing_slow_is_imported_before_ctrl_c_is_answered() -> None:
    slow = {"typing", "typer", "rich", "pydantic", "yaml", "traceback", "logging", "inspect"}
    code = "import sys; before = set(sys.modules); import coreai_recipes.cli; "
    code += f"print({slow} & (set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("set()\n", "")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
