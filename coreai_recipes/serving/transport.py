"""HTTP below the API: bodies within bounds, documents, streams of events, clients that leave."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from coreai_recipes.serving.refusals import Refusal

MOST_BYTES = 8 << 20  # of a body: a prompt of 2 MiB, the most that is read, with everything in it escaped
MOST_DISCARDED = 256 << 20  # read on and forgotten, so that the client comes to read why it is refused
SECONDS_FOR_A_BODY = 60.0


def render(document: Any) -> bytes:
    """JSON in ASCII: a model may write half of a surrogate pair, which UTF-8 cannot hold."""
    return json.dumps(document, separators=(",", ":"), allow_nan=False).encode("ascii")


class Document(Response):
    """A JSON document."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return render(content)


def refuse(refusal: Refusal) -> Document:
    headers = {"retry-after": "1"} if refusal.status in (429, 503) else {}
    if refusal.status in (408, 413):
        headers["connection"] = "close"
    if refusal.status == 401:
        headers["www-authenticate"] = "Bearer"
    return Document(refusal.to_json(), refusal.status, headers)


async def read_content(request: Request) -> bytes:
    """The body. Raises Refusal for one that is too large, too slow, or said to be no JSON."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # which no page of another site can send unasked
        raise Refusal(415, "the body must be JSON: send the header `content-type: application/json`")
    try:
        async with asyncio.timeout(SECONDS_FOR_A_BODY):
            return await _read(request)
    except TimeoutError:
        raise Refusal(408, f"the body did not come within {SECONDS_FOR_A_BODY:.0f} seconds") from None


async def _read(request: Request) -> bytes:
    parts: list[bytes] = []
    size = 0
    async for part in request.stream():
        size += len(part)
        if size <= MOST_BYTES:
            parts.append(part)
        else:
            parts.clear()
        if size > MOST_DISCARDED:
            break
    if size > MOST_BYTES:
        raise Refusal(413, f"the body has more than {MOST_BYTES >> 20} MiB", code="body_too_large")
    return b"".join(parts)


async def wait_until_gone(request: Request, answer: Callable[[], None]) -> None:
    """Call `answer` when the client has left."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    answer()


class EventStream(Response):
    """Server-sent events, a document each, then `[DONE]`. `leave` is called at the end, or when the client has left."""

    def __init__(self, documents: AsyncIterator[dict[str, Any]], leave: Callable[[], None]) -> None:
        super().__init__(
            headers={"cache-control": "no-cache", "x-accel-buffering": "no"}, media_type="text/event-stream"
        )
        del self.headers["content-length"]
        self._documents, self._leave = documents, leave

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            async for document in self._documents:
                await self._send(send, b"data: " + render(document) + b"\n\n", more=True)
            await self._send(send, b"data: [DONE]\n\n", more=False)
        except (OSError, ClientDisconnect):
            pass
        finally:
            self._leave()

    @staticmethod
    async def _send(send: Send, body: bytes, more: bool) -> None:
        await send({"type": "http.response.body", "body": body, "more_body": more})
        await asyncio.sleep(0)  # an answer that is ready waits for nothing, and others, and who has left, must be seen
