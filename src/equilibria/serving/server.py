"""The HTTP side: routes, bodies, answers whole or as a stream of events, every error as JSON; uvicorn listens."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from importlib.resources import files
from types import FrameType
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from equilibria.models import TokenModel
from equilibria.serving.connections import (
    ACCEPTED_AT_ONCE,
    KEEP_ALIVE_SECONDS,
    Connection,
    allowed_connections,
)
from equilibria.serving.errors import ApiError
from equilibria.serving.fields import ChatFields, CompletionFields, Fields
from equilibria.serving.gate import Gate
from equilibria.serving.jobs import Desk, Job
from equilibria.serving.metrics import CONTENT_TYPE, Metrics
from equilibria.serving.reading import Reader
from equilibria.serving.request import Served, TextsRequest, served_as
from equilibria.serving.responses import DONE, Answer, ChatAnswer, event_line
from equilibria.serving.worker import Event, Scored, Wrote

_BODY_SECONDS = 10.0
_CUT_SECONDS = 0.3  # for the last words to requests that are cut, and for the model's turn then
_TURN_SECONDS = 5.0  # for a turn of the model that runs when the server ends
_SAME_SECONDS = 0.2  # for which a further signal is the first one again: `timeout`, as others, sends it twice
_SWITCH_SECONDS = 5e-4  # that the model's thread may keep the interpreter while the event loop wants it
_READ_ON = 16  # times the limit is read of a body that is too large: clients read no answer before they have sent it
_PAGE = {
    "": ("index.html", "text/html"),
    "page.css": ("page.css", "text/css"),
    "page.js": ("page.js", "text/javascript"),
}
_HEADERS = {
    "content-security-policy": "default-src 'self'; img-src 'self' data:; base-uri 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "cache-control": "no-cache",
}


def build_app(desk: Desk, reader: Reader, served: Served, gate: Gate) -> Starlette:
    """The application of one model, whose desk opens with it."""
    endpoints = _Endpoints(desk, reader, served, gate)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        desk.open()
        yield

    return Starlette(
        routes=[
            Route("/v1/completions", endpoints.completions, methods=["POST"]),
            Route("/v1/chat/completions", endpoints.chat, methods=["POST"]),
            Route("/v1/models", endpoints.models, methods=["GET"]),
            Route("/v1/models/{name:path}", endpoints.model, methods=["GET"]),
            Route("/health", endpoints.health, methods=["GET"]),
            Route("/ready", endpoints.ready, methods=["GET"]),
            Route("/metrics", endpoints.figures, methods=["GET"]),
            Route("/{name}", _page, methods=["GET"]),
            Route("/", _page, methods=["GET"]),
        ],
        middleware=[Middleware(_Front, gate=gate, metrics=endpoints.metrics)],
        exception_handlers={
            ApiError: _api_error,
            HTTPException: _http_error,
            ClientDisconnect: _disconnected,
            Exception: _unexpected,
        },
        lifespan=lifespan,
    )


class _Front:
    """Before all routes: who may come in, and what each was answered. A path may end with a slash."""

    def __init__(self, app: ASGIApp, gate: Gate, metrics: Metrics) -> None:
        self._app, self._gate, self._metrics = app, gate, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope["path"] = scope["path"].rstrip("/") or "/"

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = scope.get("route")
                self._metrics.answered(route.path if isinstance(route, Route) else "none", message["status"])
            await send(message)

        try:
            self._gate.check(scope["path"], Headers(scope=scope))
        except ApiError as problem:
            await _refusal(problem)(scope, receive, counted)
            return
        await self._app(scope, receive, counted)


class _Endpoints:
    def __init__(self, desk: Desk, reader: Reader, served: Served, gate: Gate) -> None:
        self._desk, self._reader, self._served, self._gate = desk, reader, served, gate
        self.metrics = Metrics(desk)
        self._created = int(time.time())

    async def completions(self, request: Request) -> Response:
        """`POST /v1/completions`."""
        return await self._texts(request, CompletionFields, Answer)

    async def chat(self, request: Request) -> Response:
        """`POST /v1/chat/completions`."""
        return await self._texts(request, ChatFields, ChatAnswer)

    async def _texts(self, request: Request, fields: type[Fields], kind: type[Answer]) -> Response:
        arrived = time.monotonic()
        self._desk.check()
        wanted = await self._reader.read(await _body(request, self._served.limits.max_body_bytes), fields)
        self.metrics.read(sum(map(len, wanted.prompts)))
        answer = kind(wanted, self._served)
        if answer.finished and not wanted.asked.stream:
            return JSONResponse(answer.whole(answer.echoes()))
        if answer.finished:
            return _EventStream(_end(wanted, answer))
        address = None if request.client is None else request.client.host
        job = self._desk.submit(wanted, self._gate.client(address, request.headers))
        streaming = False
        try:
            first = await _next(request, job)
            if isinstance(first, ApiError):  # nothing has been sent: the status can still say it
                raise first
            self.metrics.began(time.monotonic() - arrived)
            if not wanted.asked.stream:
                return JSONResponse(answer.whole(await self._collect(request, job, answer, first)))
            streaming = True
            return _EventStream(self._lines(wanted, job, answer, first), partial(self._desk.drop, job))
        finally:
            if not streaming:
                self._desk.drop(job)

    async def models(self, request: Request) -> Response:
        """`GET /v1/models`."""
        return JSONResponse({"object": "list", "data": [self._model()]})

    async def model(self, request: Request) -> Response:
        """`GET /v1/models/NAME`."""
        served_as(request.path_params["name"], self._served)
        return JSONResponse(self._model())

    async def health(self, request: Request) -> Response:
        """`GET /health`: whether the model works, and how much it has to do; where it does not (503), start anew."""
        stalled = self._desk.stalled
        load = {"running": self._desk.running, "waiting": self._desk.waiting}
        status = {"status": "stalled" if stalled else "ok", "model": self._served.name, **load}
        return JSONResponse(status, 503 if stalled else 200)

    async def ready(self, request: Request) -> Response:
        """`GET /ready`: whether a request would be taken now."""
        self._desk.check()
        return JSONResponse({"status": "ready"})

    async def figures(self, request: Request) -> Response:
        """`GET /metrics`."""
        return Response(self.metrics.text(), media_type=CONTENT_TYPE)

    def _model(self) -> dict[str, Any]:
        limits = self._served.limits
        return {
            "id": self._served.name,
            "object": "model",
            "created": self._created,
            "owned_by": "equilibria",
            "max_tokens": limits.max_tokens,
            "window": self._served.window,
            "solves": self._served.solves,
        }

    def _choice(self, answer: Answer, event: Scored | Wrote) -> dict[str, Any] | None:
        """The next piece of an answer, counted."""
        if isinstance(event, Wrote):
            self.metrics.wrote(event.piece)
        else:
            for likelihood in event.likelihoods:
                self.metrics.solved(likelihood.converged)
        return answer.choice(event)

    async def _collect(self, request: Request, job: Job, answer: Answer, event: Event) -> list[dict[str, Any]]:
        """All pieces of an answer."""
        choices = []
        while not isinstance(event, ApiError):
            choice = self._choice(answer, event)
            if choice is not None:
                choices.append(choice)
            if answer.finished:
                return choices or answer.echoes()
            event = await _next(request, job)
        raise event

    async def _lines(self, wanted: TextsRequest, job: Job, answer: Answer, event: Event) -> AsyncIterator[bytes]:
        """The events of a stream; those that are there at the same time go together."""
        said = b""
        while not isinstance(event, ApiError):
            choice = self._choice(answer, event)
            if choice is not None:
                said += event_line(answer.chunk([choice]))
            if said and (answer.finished or job.events.empty()):
                yield said
                said = b""
            if answer.finished:
                async for line in _end(wanted, answer):
                    yield line
                return
            event = await job.events.get()
        yield said + event_line(event.body)
        yield DONE


async def _end(wanted: TextsRequest, answer: Answer) -> AsyncIterator[bytes]:
    """The last events of a finished stream."""
    if not wanted.write:
        yield event_line(answer.chunk(answer.echoes()))
    if wanted.usage:
        yield event_line(answer.last_chunk())
    yield DONE


class _EventStream(StreamingResponse):
    """Server-sent events; `end` is called when they have been sent, or nobody listens, even before the first."""

    def __init__(self, lines: AsyncIterator[bytes], end: Callable[[], None] = lambda: None) -> None:
        super().__init__(lines, media_type="text/event-stream", headers={"cache-control": "no-store"})
        self._end = end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._end()


async def _next(request: Request, job: Job) -> Event:
    """The next event of a request; raises ClientDisconnect if its client is gone."""
    if not job.events.empty():
        return job.events.get_nowait()
    coming, gone = asyncio.ensure_future(job.events.get()), asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait({coming, gone}, return_when=asyncio.FIRST_COMPLETED)
        if coming.done():
            return coming.result()
        raise ClientDisconnect
    finally:
        coming.cancel()
        gone.cancel()


async def _body(request: Request, most: int) -> bytes:
    """The body, within a limit of bytes and of time."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(415, f"content-type must be application/json, found {kind!r:.80}", code="unsupported_media_type")
    parts, size = [], 0
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            async for part in request.stream():
                size += len(part)
                if size <= most:
                    parts.append(part)
                elif size > _READ_ON * most:
                    break
    except TimeoutError as problem:
        message = "the body did not arrive in time; is its content-length right?"
        raise ApiError(408, message, code="timeout") from problem
    if size > most:
        raise ApiError(413, f"the body may have {most} bytes; send a shorter prompt", code="body_too_large")
    return b"".join(parts)


async def _page(request: Request) -> Response:
    name = request.path_params.get("name", "")
    if name not in _PAGE:
        raise HTTPException(404)
    file, kind = _PAGE[name]
    content = files("equilibria.serving").joinpath("playground", file).read_bytes()
    return Response(content, media_type=kind, headers=_HEADERS)


async def _api_error(request: Request, problem: Exception) -> Response:
    assert isinstance(problem, ApiError)
    return _refusal(problem)


def _refusal(problem: ApiError) -> Response:
    headers = {429: {"retry-after": "1"}, 503: {"retry-after": "1"}, 401: {"www-authenticate": "Bearer"}}
    return JSONResponse(problem.body, problem.status, headers.get(problem.status))


async def _http_error(request: Request, problem: Exception) -> Response:
    assert isinstance(problem, HTTPException)
    headers = dict(problem.headers or {})
    if "Allow" in headers:  # whose order Starlette leaves to chance
        headers["Allow"] = ", ".join(sorted(headers["Allow"].split(", ")))
    messages = {
        404: f"nothing is at {request.url.path[:200]}; see /v1/completions, /v1/chat/completions and /v1/models",
        405: f"{request.method[:20]} is not allowed for {request.url.path[:200]}; "
        f"send {headers.get('Allow', 'another method').replace(', ', ' or ')}",
    }
    error = ApiError(problem.status_code, messages.get(problem.status_code, problem.detail))
    return JSONResponse(error.body, problem.status_code, headers)


async def _disconnected(request: Request, problem: Exception) -> Response:
    return Response(status_code=400)


async def _unexpected(request: Request, problem: Exception) -> Response:
    return JSONResponse(ApiError(500, "internal error; see the server's log", code="internal_error").body, 500)


class _Server(uvicorn.Server):
    """Tells the desk of a shutdown before it waits for connections; a second signal cuts what is left."""

    def __init__(self, config: uvicorn.Config, desk: Desk) -> None:
        super().__init__(config)
        self._desk = desk
        self._loop: asyncio.AbstractEventLoop | None = None
        self._asked = 0.0
        self.cut = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        for listener in sockets or []:
            listener.listen(1024)  # the system's queue may be long, though few are taken from it at once

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._desk.stop()
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if not self.should_exit:
            self._asked, self.should_exit = time.monotonic(), True
        elif self._loop is not None and not self.cut and time.monotonic() - self._asked > _SAME_SECONDS:
            self.cut = True
            self._loop.call_soon_threadsafe(self._cut, self._loop)

    def _cut(self, loop: asyncio.AbstractEventLoop) -> None:
        count = self._desk.cut()
        print(f"cut {count} request{'s' * (count != 1)}", file=sys.stderr, flush=True)
        loop.call_later(_CUT_SECONDS, setattr, self, "force_exit", True)


def serve(model: TokenModel, served: Served, host: str, port: int, gate: Gate) -> bool:
    """Answers requests until SIGINT or SIGTERM; returns whether a second one cut requests off. Where the model does not
    come back from its turn in time, the process ends here, with the exit code of the command.

    Args:
        model: in evaluation mode.
        served: its name and tokenizer, and the limits.
        host, port: where to listen; port 0 takes a free one.
        gate: who may ask.

    Raises:
        OSError: the address cannot be bound.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, port), family=family, backlog=1024) as listener:
        where, bound, *_ = listener.getsockname()
        shown = f"[{where}]" if ":" in where else where
        print(f"serving {served.name} at http://{shown}:{bound}", flush=True)
        desk, reader = Desk(model, served), Reader(served)
        config = uvicorn.Config(
            build_app(desk, reader, served, gate),
            http=partial(Connection, most=served.limits.max_connections or allowed_connections()),  # pyright: ignore
            ws="none",
            lifespan="on",
            proxy_headers=False,
            log_level="error",
            access_log=False,
            server_header=False,
            backlog=ACCEPTED_AT_ONCE,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=int(served.limits.shutdown_timeout) + 5,
        )
        for number in (signal.SIGINT, signal.SIGTERM):
            # uvicorn raises them again at the end for the handlers it found; a requested shutdown is no error.
            signal.signal(number, lambda *_: None)
        # Every system call of the event loop gives the interpreter away, and it waits so long for it to come back.
        sys.setswitchinterval(_SWITCH_SECONDS)
        server = _Server(config, desk)
        server.run(sockets=[listener])
        desk.close()
        reader.close()
        # A thread that comes back from native code once the interpreter is gone would abort the process.
        seconds = _CUT_SECONDS if server.cut else _TURN_SECONDS
        if not (desk.ended(seconds) and reader.ended(seconds)):
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(130 if server.cut else 0)
        return server.cut
