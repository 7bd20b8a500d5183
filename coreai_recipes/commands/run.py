"""`recipe run`: an answer to one prompt."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from coreai_recipes.commands.messages import read_messages
from coreai_recipes.commands.opening import open_bundle
from coreai_recipes.commands.options import (
    BundleArgument,
    GuessOption,
    JsonOption,
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
from coreai_recipes.terminal.streams import check_text, read_input


def run(
    bundle: BundleArgument,
    prompt: Annotated[
        str | None, typer.Argument(metavar="PROMPT", help="The prompt; `-` reads standard input.", show_default=False)
    ] = None,
    messages: Annotated[
        Path | None,
        typer.Option(
            "--messages", metavar="FILE", help="A conversation to answer: a JSON list of objects with role and content."
        ),
    ] = None,
    max_tokens: Annotated[int, typer.Option(metavar="N", min=1, help="Longest answer, in tokens.")] = 256,
    system: SystemOption = None,
    adapter: WithAdapterOption = None,
    draft: GuessOption = False,
    raw: Annotated[bool, typer.Option("--raw", help="Do not apply the chat template.")] = False,
    template: TemplateOption = None,
    temperature: TemperatureOption = 0.0,
    top_p: TopPOption = 1.0,
    top_k: TopKOption = 0,
    min_p: MinPOption = 0.0,
    repetition_penalty: PenaltyOption = 1.0,
    seed: SeedOption = None,
    stop: StopOption = None,
    prompt_cache: Annotated[
        Path | None,
        typer.Option(
            "--prompt-cache",
            metavar="FILE",
            help="Restore the model's states from FILE, if it exists, and save them there.",
        ),
    ] = None,
    runtime: RuntimeOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Answer one prompt, token by token."""
    from coreai_recipes.generate import Sampler, answer
    from coreai_recipes.generate.prompt_cache import PromptCache
    from coreai_recipes.report import console

    if prompt is None and messages is None:
        raise UserError("recipe run: give a PROMPT, or a conversation with --messages FILE")
    if messages is not None and system is not None:
        raise UserError("--system cannot be used with --messages; put the system message into the file")
    said: list[dict[str, str]] = [] if messages is None else read_messages(messages)
    text = read_input() if prompt == "-" else check_text(prompt or "", "PROMPT")
    asked = text if messages is None else [*said, *([{"role": "user", "content": text}] if prompt is not None else [])]
    system = system and check_text(system, "--system")
    sampler = Sampler(temperature, top_p, seed, top_k=top_k, min_p=min_p, repetition_penalty=repetition_penalty)
    named, variables = read_template(template)
    stop = [check_text(text, "--stop") for text in stop or ()]
    model = open_bundle(bundle, runtime, adapter)
    kept = None if prompt_cache is None else PromptCache(prompt_cache, model)
    if kept is not None:
        kept.restore()
    result = answer(
        model,
        asked,
        system=system,
        raw=raw,
        template=named,
        variables=variables,
        stop=stop,
        max_tokens=max_tokens,
        sampler=sampler,
        draft=draft,
    )
    for piece in result:
        if not as_json:
            print(piece, end="", flush=True)
    if kept is not None:
        kept.save()
    if as_json:
        console.print_json(result.to_json())
        return
    print()
    print(result.summary(), file=sys.stderr)
