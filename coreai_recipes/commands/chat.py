"""`recipe chat`: a conversation."""

import sys
from typing import Annotated, Any

import typer

from coreai_recipes.commands.opening import open_bundle
from coreai_recipes.commands.options import (
    BundleArgument,
    RuntimeOption,
    SeedOption,
    SystemOption,
    TemperatureOption,
    TemplateOption,
    TopPOption,
)
from coreai_recipes.errors import UserError
from coreai_recipes.signals import signals
from coreai_recipes.terminal import StreamError, check_text, read_line


def chat(
    bundle: BundleArgument,
    system: SystemOption = None,
    max_tokens: Annotated[int, typer.Option(metavar="N", min=1, help="End an answer after this many tokens.")] = 512,
    template: TemplateOption = None,
    temperature: TemperatureOption = 0.0,
    top_p: TopPOption = 1.0,
    seed: SeedOption = None,
    runtime: RuntimeOption = "auto",
) -> None:
    """Talk with the model; the cached conversation is read once. `/quit` ends it."""
    from coreai_recipes.generate import Chat, Sampler

    system = system and check_text(system, "--system")
    sampler = Sampler(temperature, top_p, seed)
    model = open_bundle(bundle, runtime)
    talk = Chat(model, system=system, sampler=sampler, max_tokens=max_tokens, template=template)
    while True:
        try:
            line = read_line("> ")
        except StreamError:
            raise
        except UserError as error:  # a line that is not text
            print(error, file=sys.stderr)
            continue
        if not line or line.strip() == "/quit":
            return
        if line.strip():
            _reply(talk, line.removesuffix("\n"))


def _reply(talk: Any, line: str) -> None:
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
