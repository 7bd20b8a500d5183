"""A terminal gets control characters spelt out, on either stream; a pipe gets the bytes."""

import json
from pathlib import Path

import pytest
from terminals import run_on_pipes, run_on_terminal

from coreai_recipes.errors import UserError
from coreai_recipes.terminal.streams import check_text, escape

TINY = Path(__file__).parents[1] / "checkpoints/tiny-llama"
ESC = b"\x1b"
TITLE = "\x1b]0;owned\x07"  # what a terminal takes for its window's title
SPEAKS = f"""
import coreai_recipes.tokenizer.streaming as streaming
streaming.TextStream.add = lambda self, token: {TITLE!r} + "\\r\\n\\tis\\u202e\\x9b\\x7f"
"""


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x1b[0m", r"\x1b[31mred\x1b[0m"),
        ("one\rtwo\x08\x07\x00", r"one\x0dtwo\x08\x07\x00"),
        ("\x7f \x85 \x9b31m", r"\x7f \x85 \x9b31m"),
        ("a\u202eb\u2066c\u2028d\u2029", r"a\u202eb\u2066c\u2028d\u2029"),
        ("caf\udce9 \ud800", r"caf\xe9 \ud800"),
        ("line\n\tindented", "line\n\tindented"),
        ("שלום, 你好, 👩‍👩‍👧, \u200f, naïve \\x1b", "שלום, 你好, 👩‍👩‍👧, \u200f, naïve \\x1b"),
    ],
)
def test_what_a_terminal_would_obey_is_spelt_out_and_nothing_else(text: str, shown: str) -> None:
    assert escape(text) == shown


def test_bytes_that_are_no_text_are_refused_with_their_place() -> None:
    with pytest.raises(UserError, match=r"PROMPT: not UTF-8: byte 0xff after 3 characters"):
        check_text("abc\udcff", "PROMPT")


def test_a_models_control_characters_do_not_reach_a_terminal(tiny_bundle: Path) -> None:
    arguments = ("run", tiny_bundle, "In the beginning", "--max-tokens", 2)
    status, got = run_on_terminal(*arguments, before=SPEAKS)
    assert (status, ESC in got) == (0, False), got
    assert rb"\x1b]0;owned\x07\x0d" + b"\r\n\t" + rb"is\u202e\x9b\x7f" in got
    _, out, _ = run_on_pipes(*arguments, before=SPEAKS)
    assert out.startswith(TITLE.encode() + b"\r\n\tis\xe2\x80\xae\xc2\x9b\x7f" + TITLE.encode())


def test_json_on_a_terminal_is_json(tiny_bundle: Path) -> None:
    status, got = run_on_terminal("run", tiny_bundle, "In the", "--max-tokens", 1, "--json", before=SPEAKS)
    assert status == 0
    assert json.loads(got[got.index(b"{") :])["text"].startswith(TITLE)


def test_names_in_errors_do_not_reach_a_terminal_raw(tmp_path: Path) -> None:
    name = tmp_path / "\x1b[2J\udcff[bold].yaml"
    status, got = run_on_terminal("validate", name)
    assert status == 2
    assert ESC not in got
    assert rb"/\x1b[2J\xff[bold].yaml: no such file" in got
    _, _, err = run_on_pipes("validate", name)
    assert b"/\x1b[2J\\xff[bold].yaml: no such file" in err


@pytest.mark.parametrize("word", ["\x1b[2J", "--\x1b[2J"])
def test_words_that_are_no_command_do_not_reach_a_terminal_raw(word: str) -> None:
    status, got = run_on_terminal(word)
    assert (status, ESC in got) == (2, False), got
    assert rb"\x1b[2J" in got


def test_a_tables_cells_and_headings_are_words_and_not_markup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # names as they stand: a long path folds, and where depends on its length
    one, other = (Path(f"[bold]\x1b]0;{name}\x07.yaml") for name in "ab")
    one.write_text("extends: tiny-llama\nname: a\n")
    other.write_text("extends: tiny-llama\nname: b\nmodel: {embedding: {scale: 2.0}}\n")
    status, got = run_on_terminal("diff", one, other)
    folded = b"".join(line.strip() for line in got.replace(b"\x1b[1m", b"").replace(b"\x1b[0m", b"").split(b"\r\n"))
    assert status == 1
    assert ESC not in folded, got
    assert b"[bold]" in folded
    _, out, _ = run_on_pipes("diff", one, other)
    assert b"[bold]" in out


def test_what_a_plugin_prints_while_a_bar_is_drawn_is_escaped(tmp_path: Path) -> None:
    printing = f"""
import coreai_recipes.decoder.filling as filling
bind = filling.bind_weights
def bind_and_print(*arguments):
    print({TITLE!r})
    return bind(*arguments)
filling.bind_weights = bind_and_print
"""
    build = ("build", "tiny-llama", "--checkpoint", TINY, "--no-verify", "--out", tmp_path)
    status, got = run_on_terminal(*build, before=printing)
    assert status == 0, got
    assert b"\x1b]" not in got
    assert rb"\x1b]0;owned\x07" in got


def test_help_keeps_its_colours_on_a_terminal() -> None:
    status, got = run_on_terminal("build", "--help")
    assert (status, b"\x1b[1m" in got, rb"\x1b" in got) == (0, True, False)


def test_a_chat_has_commands_and_says_what_it_does_not_know(tiny_bundle: Path) -> None:
    typed = b'/help\n/resett\n/reset now\n/system Be brief.\n/reset\n/tmp/x is\n"""/quit\nit"""\n/quit\n'
    status, out, err = run_on_pipes("chat", tiny_bundle, "--max-tokens", 2, typed=typed)
    said = err.decode().splitlines()
    assert status == 0
    assert [line.split()[0] for line in said[1:6]] == ["/help", "/reset", "/system", "/quit", '"""']
    assert said[6] == "/resett: no such command: /help lists the commands"
    assert said[7] == "/reset takes no argument: /help lists the commands"
    assert said[8].endswith("--system needs a chat template, and its tokenizer has none: put the text into the prompt")
    assert said[9] == "new conversation"
    assert said[10].startswith("2 tokens")  # a path is no command
    assert said[11].startswith("2 tokens")  # nor is what stands between quotes, on as many lines as it takes
    assert out


def test_a_chat_on_a_terminal_begins_with_what_there_is_and_has_a_history(tiny_bundle: Path) -> None:
    """Arrow up was `^[[A`."""
    refused = b"/resett: no such command"
    stays = b"/quit or Ctrl-D leaves the chat"
    answers = [
        (b">", b"/resett\r"),
        (refused, b""),
        (b">", b"\x1b[A\r"),
        (refused, b""),
        (b">", b"hal\x03"),
        (stays, b""),
    ]
    answers.append((b">", b"/quit\r"))
    status, got = run_on_terminal("chat", tiny_bundle, "--max-tokens", 1, answers=answers)
    assert status == 0, got
    assert b"loading " in got
    assert b"positions; /help lists the commands" in got
    assert got.count(b"/resett: no such command") == 2, got
