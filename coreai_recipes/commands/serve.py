"""`recipe serve`: bundles over HTTP."""

import sys
from typing import Annotated

import typer

from coreai_recipes.commands.opening import open_with_adapters
from coreai_recipes.commands.options import JsonOption, RuntimeOption
from coreai_recipes.errors import UserError

EXTRA = "pip install 'coreai-recipes[serve]'"


def serve(
    bundles: Annotated[
        list[str], typer.Argument(metavar="BUNDLE...", help="Bundles' folders, or their names in dist/.")
    ],
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(metavar="PORT", min=0, max=65535, help="The port; 0 takes any that is free.")
    ] = 8000,
    api_key: Annotated[
        str | None,
        typer.Option(
            metavar="KEY", envvar="RECIPE_API_KEY", help="What clients must send; needed off this machine's loopback."
        ),
    ] = None,
    queue: Annotated[
        int, typer.Option(metavar="N", min=1, help="How many requests may wait for a bundle; more get status 429.")
    ] = 32,
    prompt_cache_mb: Annotated[
        int, typer.Option(metavar="MB", min=0, help="Memory for the states of earlier prompts, for each bundle.")
    ] = 1024,
    runtime: RuntimeOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Serve bundles over OpenAI's HTTP API."""
    try:
        from coreai_recipes.serving.server import Settings, listen
        from coreai_recipes.serving.server import serve as answer
    except ModuleNotFoundError as error:
        if error.name not in ("starlette", "uvicorn", "prometheus_client"):
            raise
        raise UserError(f"recipe serve needs starlette, uvicorn and prometheus-client: {EXTRA}") from None
    from coreai_recipes.report import console

    if api_key is not None and not (api_key.isascii() and api_key.isprintable() and api_key.strip() == api_key != ""):
        raise UserError("--api-key: must be printable ASCII without spaces at its ends")
    listener = listen(host, port, api_key)  # before anything slow
    with listener:
        models = {}
        for word in bundles:
            for model in open_with_adapters(word, runtime):
                name = model.path.resolve().name + (f":{model.adapter}" if model.adapter else "")
                if name in models:
                    raise UserError(
                        f"{word}: {name} is the name of another bundle too: serve it under another folder's"
                    )
                models[name] = model
        address = f"[{host}]" if ":" in host else host
        url = f"http://{address}:{listener.getsockname()[1]}/v1"

        def ready() -> None:
            if as_json:
                console.print_json({"url": url, "models": list(models)})
            else:
                print(f"{', '.join(models)}: {url}", file=sys.stderr)

        answer(models, listener, Settings(api_key, queue, prompt_cache_mb << 20), ready)
