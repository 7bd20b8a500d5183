"""What stands before the API: who may ask, what is counted, and a sentence for what nobody has foreseen."""

import hmac
import sys

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from coreai_recipes.errors import describe
from coreai_recipes.serving.metrics import Metrics
from coreai_recipes.serving.refusals import Refusal
from coreai_recipes.serving.transport import refuse

PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/models", "/health", "/metrics")  # a label must be one of few
LOCAL = {"localhost", "127.0.0.1", "[::1]"}


class Guard:
    """`key` is what a client must know, None where everyone on this machine may ask. Without one, only names of this
    machine are answered: a page of another site could else reach it under a name of its own."""

    def __init__(self, app: ASGIApp, key: str | None, metrics: Metrics) -> None:
        self._app, self._key, self._metrics = app, key, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = next((path for path in PATHS if scope["path"].startswith(path)), "other")
        is_started = False

        async def counted(message: Message) -> None:
            nonlocal is_started
            if message["type"] == "http.response.start":
                is_started = True
                self._metrics.responses.labels(path, message["status"]).inc()
            await send(message)

        try:
            refusal = self._refusal(Headers(scope=scope), path)
            await (self._app if refusal is None else refuse(refusal))(scope, receive, counted)
        except Exception as error:
            print(f"recipe serve: {path}: {describe(error)}", file=sys.stderr)
            if not is_started:
                await refuse(Refusal(500, "a fault of the server", code="internal_error"))(scope, receive, counted)

    def _refusal(self, headers: Headers, path: str) -> Refusal | None:
        if path == "/health":
            return None
        if self._key is None:
            host = headers.get("host", "localhost")
            name = host if host.endswith("]") else host.rpartition(":")[0] or host
            if name.lower() in LOCAL:
                return None
            return Refusal(403, "without --api-key, only localhost is answered", code="unknown_host")
        given = headers.get("authorization", "")
        if hmac.compare_digest(given.encode(), f"Bearer {self._key}".encode()):
            return None
        return Refusal(401, "the API key is missing or wrong: send `Authorization: Bearer KEY`", code="invalid_api_key")
