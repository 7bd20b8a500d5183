"""OpenAI's paths: which bundle is asked, what it is asked, and its answer."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from coreai_recipes.errors import UserError
from coreai_recipes.serving.bodies import Body, ChatBody, CompletionBody, read_body
from coreai_recipes.serving.guard import Guard
from coreai_recipes.serving.metrics import Metrics
from coreai_recipes.serving.refusals import Refusal
from coreai_recipes.serving.replies import ChatReply, CompletionReply, Reply
from coreai_recipes.serving.tools import ToolForm, ToolReader, form_of
from coreai_recipes.serving.transport import Document, EventStream, read_content, refuse, wait_until_gone
from coreai_recipes.serving.worker import End, Event, Job, Piece, Served

GONE = Refusal(499, "the client has left")  # nginx's word; nobody reads it


class Api:
    """The application over the models that are served, by name."""

    def __init__(self, served: Mapping[str, Served], metrics: Metrics, key: str | None = None) -> None:
        self._served, self._metrics = served, metrics
        self._workers = {id(each.worker): each.worker for each in served.values()}.values()
        # a template and its tokenizer work for one request at a time, and beside the loop: a long text takes a second
        self._preparing = ThreadPoolExecutor(1, "prepare")
        self._spelling = {name: lru_cache(1 << 16)(each.model.tokenizer.text_of) for name, each in served.items()}
        routes = [
            Route("/v1/models", self._models),
            Route("/v1/models/{name:path}", self._model),
            Route("/v1/chat/completions", self._chat, methods=["POST"]),
            Route("/v1/completions", self._complete, methods=["POST"]),
            Route("/health", self._health),
            Route("/metrics", self._tell_metrics),
        ]
        handlers: dict[Any, Any] = {Refusal: _answer_refusal, HTTPException: _answer_http}
        self.app = Guard(Starlette(routes=routes, exception_handlers=handlers), key, metrics)

    async def _models(self, request: Request) -> Response:
        return Document({"object": "list", "data": [_described(each) for each in self._served.values()]})

    async def _model(self, request: Request) -> Response:
        return Document(_described(self._find(request.path_params["name"])))

    async def _health(self, request: Request) -> Response:
        is_well = all(worker.is_alive for worker in self._workers)
        document = {"status": "ok" if is_well else "failed", "models": list(self._served)}
        return Document(document, 200 if is_well else 503)

    async def _tell_metrics(self, request: Request) -> Response:
        return Response(self._metrics.text(), media_type="text/plain; version=0.0.4")

    async def _chat(self, request: Request) -> Response:
        body, served = await self._read(request, ChatBody)
        prompt_ids, form = await self._prepared(lambda: _encode_chat(served, body))
        tools = None if form is None else ToolReader(form, body.offered or [])
        reply = ChatReply(body.model, self._spelling[served.name], body.top is not None, body.wants_usage, tools=tools)
        return await self._answered(request, body, served, prompt_ids, reply, () if form is None else form.shown)

    async def _complete(self, request: Request) -> Response:
        body, served = await self._read(request, CompletionBody)
        prompt_ids = await self._prepared(lambda: _encode_text(served, body))
        reply = CompletionReply(body.model, self._spelling[served.name], body.top is not None, body.wants_usage)
        return await self._answered(request, body, served, prompt_ids, reply)

    async def _read(self, request: Request, form: type[Body]) -> tuple[Body, Served]:
        try:
            body = read_body(await read_content(request), form)
        except ClientDisconnect:
            raise GONE from None
        served = self._find(body.model)
        asked = [option.removeprefix("--").replace("-", "_") for option in body.sampling.asked]
        asked += ["logprobs"] if body.top is not None else []
        if asked and not served.model.session.gives_logits:
            said = f"{served.name} gives its best token and no logits: leave out {', '.join(asked)}"
            raise Refusal(400, said, param=asked[0])
        return body, served

    def _find(self, name: str) -> Served:
        if name not in self._served:
            there = ", ".join(self._served)
            raise Refusal(404, f"there is no model {name}: {there}", param="model", code="model_not_found")
        return self._served[name]

    async def _prepared(self, prepare: Callable[[], Any]) -> Any:
        """A prompt's tokens. Raises Refusal where there are none."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._preparing, prepare)
        except UserError as error:
            raise Refusal(400, "; ".join(error.problems), code="invalid_prompt") from None

    async def _answered(
        self,
        request: Request,
        body: ChatBody | CompletionBody,
        served: Served,
        prompt_ids: Sequence[int],
        reply: Reply,
        shown: Sequence[str] = (),
    ) -> Response:
        """The response, once its turn has come and the first of it is there. Raises Refusal."""
        loop, events = asyncio.get_running_loop(), asyncio.Queue[Event]()

        def tell(event: Event) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(events.put_nowait, event)

        most = body.limit or served.model.session.context
        job = Job(served.name, prompt_ids, most, body.sampling, tell, body.stops, shown, body.top)
        served.worker.submit(job)

        def end_at_once() -> None:
            while not events.empty():  # what nobody will read
                events.get_nowait()
            events.put_nowait(GONE)

        watch = asyncio.create_task(wait_until_gone(request, end_at_once))

        def leave() -> None:
            watch.cancel()
            served.worker.leave(job)

        try:
            first = await _next(events)
            if body.stream:
                return EventStream(_chunks(first, events, reply), leave)
            pieces: list[Piece] = []
            while isinstance(first, Piece):
                pieces.append(first)
                first = await _next(events)
        except BaseException:
            leave()
            raise
        leave()
        return Document(reply.whole(pieces, first))

    def close(self) -> None:
        """Stop every worker."""
        for worker in self._workers:
            worker.close()
        self._preparing.shutdown(cancel_futures=True)


async def _next(events: "asyncio.Queue[Event]") -> Piece | End:
    event = await events.get()
    if isinstance(event, Refusal):
        raise event
    return event


async def _chunks(first: Piece | End, events: "asyncio.Queue[Event]", reply: Reply) -> AsyncIterator[dict[str, Any]]:
    """The documents of a stream that has begun; a fault is its last."""
    event: Piece | End = first
    try:
        while isinstance(event, Piece):
            for chunk in reply.add(event):
                yield chunk
            event = await _next(events)
    except Refusal as refusal:
        if refusal is GONE:
            raise ClientDisconnect from None
        yield refusal.to_json()
        return
    for chunk in reply.end(event):
        yield chunk


def _encode_text(served: Served, body: CompletionBody) -> list[int]:
    prompt = body.prompt
    if isinstance(prompt, str):
        ids = served.model.tokenizer.encode(prompt)
    elif isinstance(prompt[0], str):
        ids = served.model.tokenizer.encode(prompt[0])
    else:
        ids = [token for token in prompt if isinstance(token, int)]
        if wrong := [token for token in ids if not 0 <= token < served.model.vocab_size]:
            raise UserError(f"prompt: the model has no token {wrong[0]}: there are {served.model.vocab_size}")
    served.model.check_prompt(ids)
    return ids


def _encode_chat(served: Served, body: ChatBody) -> tuple[list[int], ToolForm | None]:
    """A conversation's tokens, and how calls of its tools will be written."""
    model, form = served.model, None
    model.tokenizer.check_template(None, body.chat_template_kwargs)
    if body.offered is not None:
        names = model.tokenizer.template_names
        form = form_of(model.tokenizer.template_source("default")) if "default" in names else None
        if form is None:
            raise Refusal(400, f"{served.name} takes no tools: its chat template writes no calls", param="tools")
    messages = [said.for_template() for said in body.messages]
    ids = model.tokenizer.encode_chat(messages, None, body.chat_template_kwargs, body.offered)
    model.check_prompt(ids)
    return ids, form


def _described(served: Served) -> dict[str, Any]:
    return {
        "id": served.name,
        "object": "model",
        "created": served.worker.created,
        "owned_by": "coreai-recipes",
        "context": served.model.session.context,
    }


async def _answer_refusal(request: Request, error: Refusal) -> Response:
    return refuse(error)


async def _answer_http(request: Request, error: HTTPException) -> Response:
    said = {404: f"there is no path {request.url.path}", 405: f"{request.url.path} does not take {request.method}"}
    return refuse(Refusal(error.status_code, said.get(error.status_code, error.detail)))
