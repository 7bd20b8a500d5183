"""`recipe chat`: a conversation."""

import re
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from coreai_recipes.commands.opening import open_bundle
from coreai_recipes.commands.options import (
    BundleArgument,
    GuessOption,
    MinPOption,
    PenaltyOption,
    RuntimeOption,
    SeedOption,
    StopOption,
    SystemOption,
    TemperatureOption,
    TemplateOption,
    TopKOption,
    TopPOption,
    WithAdapterOption,
    read_template,
)
from coreai_recipes.errors import UserError
from coreai_recipes.terminal.signals import signals
from coreai_recipes.terminal.streams import StreamError, check_text, read_line

if TYPE_CHECKING:
    from coreai_recipes.generate import Chat

QUOTES = '"""'
COMMANDS = {
    "/help": ("", "show this list"),
    "/reset": ("", "start a new conversation; keep the system message"),
    "/system": ("TEXT", "set the system message; without TEXT, remove it"),
    "/quit": ("", "leave the chat, as Ctrl-D does; Ctrl-C stops an answer"),
    QUOTES: ("", "begin a message of several lines, and end it"),
}


def chat(
    bundle: BundleArgument,
    system: SystemOption = None,
    max_tokens: Annotated[int, typer.Option(metavar="N", min=1, help="Longest answer, in tokens.")] = 512,
    adapter: WithAdapterOption = None,
    draft: GuessOption = False,
    template: TemplateOption = None,
    temperature: TemperatureOption = 0.0,
    top_p: TopPOption = 1.0,
    top_k: TopKOption = 0,
    min_p: MinPOption = 0.0,
    repetition_penalty: PenaltyOption = 1.0,
    seed: SeedOption = None,
    stop: StopOption = None,
    runtime: RuntimeOption = "auto",
) -> None:
    """Chat with the model. `/help` lists the commands of a chat."""
    from coreai_recipes.generate import Chat, Sampler

    system = system and check_text(system, "--system")
    sampler = Sampler(temperature, top_p, seed, top_k=top_k, min_p=min_p, repetition_penalty=repetition_penalty)
    named, variables = read_template(template)
    stop = [check_text(text, "--stop") for text in stop or ()]
    model = open_bundle(bundle, runtime, adapter)
    talk = Chat(
        model,
        system=system,
        sampler=sampler,
        max_tokens=max_tokens,
        template=named,
        variables=variables,
        stop=stop,
        draft=draft,
    )
    typed = sys.stdin is not None and sys.stdin.isatty()
    if typed:
        print(f"{bundle}: {model.session.context:,} positions; /help lists the commands", file=sys.stderr)
    while True:
        try:
            line = read_line("> ")
            quoted = _read_quoted(line) if line.startswith(QUOTES) else None
        except StreamError:
            raise
        except UserError as error:  # a line that is not text
            print(error, file=sys.stderr)
            continue
        except KeyboardInterrupt:
            if not typed:
                raise
            if signals.received is not None:  # else the key was read, and no signal sent
                signals.forgive()
            print("/quit or Ctrl-D leaves the chat", file=sys.stderr)
            continue
        word, _, rest = line.strip().partition(" ")
        if not line or word == "/quit":
            return
        if quoted is not None:
            if quoted.strip():
                _reply(talk, quoted)
        elif re.fullmatch(r"/[a-z]+", word):
            _obey(talk, word, rest.strip())
        elif word:
            _reply(talk, line.removesuffix("\n"))


def _read_quoted(line: str) -> str:
    """The message of several lines that begins with `line`: it ends where a line ends with three quotes again."""
    text = line.removeprefix(QUOTES)
    while not text.rstrip().endswith(QUOTES) and (line := read_line("... ")):
        text += line
    return text.rstrip().removesuffix(QUOTES).strip("\n")


def _obey(talk: "Chat", word: str, rest: str) -> None:
    """A word to the chat, and not to the model."""
    try:
        if word == "/system":
            talk.set_system(rest or None)
            said = f"system message: {rest}" if rest else "no system message"
        elif rest or word not in ("/help", "/reset"):
            said = (
                f"{word}{' takes no argument' if word in COMMANDS else ': no such command'}: /help lists the commands"
            )
        elif word == "/reset":
            talk.reset()
            said = "new conversation"
        else:
            said = "\n".join(f"{name + ' ' + takes:14}  {what}" for name, (takes, what) in COMMANDS.items())
    except UserError as error:
        said = str(error)
    print(said, file=sys.stderr)


def _reply(talk: "Chat", line: str) -> None:
    """One turn; what is wrong with it, or Ctrl-C, ends the turn and not the chat."""
    try:
        result = talk.reply(line)
    except UserError as error:
        print(error, file=sys.stderr)
        return
    try:
        for piece in result:
            print(piece, end="", flush=True)
    except KeyboardInterrupt:
        signals.forgive()
        result.close()
    print()
    print(result.summary(), file=sys.stderr)
