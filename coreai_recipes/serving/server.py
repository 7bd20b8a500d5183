"""A server on an address of this machine, until it is asked to stop."""

import asyncio
import errno
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import uvicorn

from coreai_recipes.errors import UserError
from coreai_recipes.generate.language_model import LanguageModel
from coreai_recipes.serving.api import Api
from coreai_recipes.serving.metrics import Metrics
from coreai_recipes.serving.worker import Served, Worker

GRACE = 3  # seconds for what is being sent when the server is stopped


@dataclass(frozen=True)
class Settings:
    """`queue` requests may wait for a bundle; `prompt_bytes` bound what each keeps of earlier prompts."""

    key: str | None = None
    queue: int = 32
    prompt_bytes: int = 1 << 30


def listen(host: str, port: int, key: str | None) -> socket.socket:
    """A socket on the address; port 0 is any that is free. Raises UserError where it cannot be had, or where others
    could ask without a key."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except (OSError, UnicodeError) as error:
        raise UserError(f"--host {host}: is no address of this machine: {_reason(error)}") from None
    if key is None and not _is_loopback(str(address[0])):
        raise UserError(f"--host {host}: others can reach this address: add --api-key KEY")
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
        listener.listen(128)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise UserError(f"{host}:{port}: another program listens there; choose another --port") from None
        raise UserError(f"{host}:{port}: cannot listen: {_reason(error)}") from None
    return listener


def serve(
    models: Mapping[str, LanguageModel], listener: socket.socket, settings: Settings, ready: Callable[[], None]
) -> None:
    """Answer until the process is asked to stop; `ready` is called once requests are taken."""
    server, api = make_server(models, settings, ready)
    try:
        server.run(sockets=[listener])
    finally:
        api.close()


def make_server(
    models: Mapping[str, LanguageModel], settings: Settings, ready: Callable[[], None]
) -> tuple[uvicorn.Server, Api]:
    """The server, and what it serves."""
    metrics = Metrics()
    served: dict[str, Served] = {}
    for model in models.values():
        if model.first is None:
            together = {other: each for other, each in models.items() if each is model or each.first is model}
            worker = Worker(together, settings.queue, settings.prompt_bytes, metrics)
            served |= {other: Served(other, each, worker) for other, each in together.items()}
    api = Api({name: served[name] for name in models}, metrics, settings.key)
    config = uvicorn.Config(
        api.app,
        loop="asyncio",
        http="h11",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=GRACE,
    )
    return _Server(config, ready, api), api


class _Server(uvicorn.Server):
    """uvicorn's, which says when it is ready, and ends answers before it waits for them."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None], api: Api) -> None:
        super().__init__(config)
        self._ready, self._api = ready, api

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await asyncio.to_thread(self._api.close)
        await super().shutdown(sockets)


def _is_loopback(address: str) -> bool:
    return address == "::1" or address.startswith("127.")


def _reason(error: Exception) -> str:
    return (getattr(error, "strerror", None) or str(error)).lower()
