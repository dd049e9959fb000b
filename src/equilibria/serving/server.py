"""The HTTP side: routes, bodies, answers whole or as a stream of events, every error as JSON; uvicorn listens."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Any

import h11
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from equilibria.models import TokenModel
from equilibria.serving.errors import ApiError
from equilibria.serving.fields import parse_json
from equilibria.serving.request import CompletionRequest, Served, read_request, served_as
from equilibria.serving.responses import DONE, Answer, event_line
from equilibria.serving.worker import Event, Job, Worker

_BODY_SECONDS = 10.0
_KEEP_ALIVE_SECONDS = 15
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


def build_app(worker: Worker, served: Served) -> Starlette:
    """The application of one model, whose worker starts and stops with it."""
    endpoints = _Endpoints(worker, served)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        worker.start()
        yield
        worker.stop()

    return Starlette(
        routes=[
            Route("/v1/completions", endpoints.completions, methods=["POST"]),
            Route("/v1/models", endpoints.models, methods=["GET"]),
            Route("/v1/models/{name:path}", endpoints.model, methods=["GET"]),
            Route("/health", endpoints.health, methods=["GET"]),
            Route("/{name}", _page, methods=["GET"]),
            Route("/", _page, methods=["GET"]),
        ],
        exception_handlers={
            ApiError: _api_error,
            HTTPException: _http_error,
            ClientDisconnect: _disconnected,
            Exception: _unexpected,
        },
        lifespan=lifespan,
    )


class _Endpoints:
    def __init__(self, worker: Worker, served: Served) -> None:
        self.worker, self._served = worker, served
        self._created = int(time.time())

    async def completions(self, request: Request) -> Response:
        """`POST /v1/completions`."""
        wanted = read_request(parse_json(await _body(request, self._served.limits.max_body_bytes)), self._served)
        answer = Answer(wanted, self._served)
        if answer.finished and not wanted.asked.stream:
            return JSONResponse(answer.whole(answer.echoes()))
        if answer.finished:
            return _event_stream(_end(wanted, answer))
        job = self.worker.submit(wanted)
        streaming = False
        try:
            if not wanted.asked.stream:
                return JSONResponse(answer.whole(await _collect(request, job, answer)))
            first = await _next(request, job)
            if isinstance(first, ApiError):  # nothing has been sent: the status can still say it
                raise first
            streaming = True
            return _event_stream(self._lines(wanted, job, answer, first))
        finally:
            if not streaming:
                self.worker.cancel(job)

    async def models(self, request: Request) -> Response:
        """`GET /v1/models`."""
        return JSONResponse({"object": "list", "data": [self._model()]})

    async def model(self, request: Request) -> Response:
        """`GET /v1/models/NAME`."""
        served_as(request.path_params["name"], self._served)
        return JSONResponse(self._model())

    async def health(self, request: Request) -> Response:
        """`GET /health`: whether the server works, and how much it has to do."""
        return JSONResponse({"status": "ok", "model": self._served.name, **self.worker.load})

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

    async def _lines(self, wanted: CompletionRequest, job: Job, answer: Answer, event: Event) -> AsyncIterator[bytes]:
        """The events of a stream; a client that stops listening frees the places of its texts."""
        try:
            while not isinstance(event, ApiError):
                choice = answer.choice(event)
                if choice is not None:
                    yield event_line(answer.chunk([choice]))
                if answer.finished:
                    async for line in _end(wanted, answer):
                        yield line
                    return
                event = await job.events.get()
            yield event_line(event.body)
            yield DONE
        finally:
            self.worker.cancel(job)


async def _end(wanted: CompletionRequest, answer: Answer) -> AsyncIterator[bytes]:
    """The last events of a finished stream."""
    if not wanted.write:
        yield event_line(answer.chunk(answer.echoes()))
    if wanted.usage:
        yield event_line(answer.last_chunk())
    yield DONE


def _event_stream(lines: AsyncIterator[bytes]) -> StreamingResponse:
    return StreamingResponse(lines, media_type="text/event-stream", headers={"cache-control": "no-store"})


async def _collect(request: Request, job: Job, answer: Answer) -> list[dict[str, Any]]:
    """All pieces of an answer."""
    choices = []
    while not answer.finished:
        event = await _next(request, job)
        if isinstance(event, ApiError):
            raise event
        choice = answer.choice(event)
        if choice is not None:
            choices.append(choice)
    return choices or answer.echoes()


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
    headers = {"retry-after": "1"} if problem.status in (429, 503) else None
    return JSONResponse(problem.body, problem.status, headers)


async def _http_error(request: Request, problem: Exception) -> Response:
    assert isinstance(problem, HTTPException)
    messages = {
        404: f"nothing is at {request.url.path[:200]}; see /v1/completions and /v1/models",
        405: f"{request.method[:20]} is not allowed for {request.url.path[:200]}",
    }
    error = ApiError(problem.status_code, messages.get(problem.status_code, problem.detail))
    return JSONResponse(error.body, problem.status_code, problem.headers)


async def _disconnected(request: Request, problem: Exception) -> Response:
    return Response(status_code=400)


async def _unexpected(request: Request, problem: Exception) -> Response:
    return JSONResponse(ApiError(500, "internal error; see the server's log", code="internal_error").body, 500)


class _Protocol(H11Protocol):
    """HTTP that answers malformed requests in JSON too."""

    def send_400_response(self, msg: str) -> None:
        body = json.dumps(ApiError(400, f"malformed HTTP request: {msg}").body).encode()
        head = f"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
        self.transport.write(head.encode() + b"connection: close\r\n\r\n" + body)
        self.transport.close()

    def handle_events(self) -> None:
        # An unknown version of HTTP is refused here: h11 would answer it.
        line, end, _ = self.conn.trailing_data[0].partition(b"\r\n")
        if end and self.conn.their_state is h11.IDLE and not line.endswith((b" HTTP/1.1", b" HTTP/1.0")):
            self.send_400_response("its first line must end with HTTP/1.1")
            return
        super().handle_events()

    def eof_received(self) -> None:
        if self.cycle is not None and not self.cycle.response_started and self.cycle.more_body:
            self.send_400_response("the body is shorter than its content-length")


class _Server(uvicorn.Server):
    """Tells the worker of a shutdown before it waits for connections."""

    def __init__(self, config: uvicorn.Config, worker: Worker) -> None:
        super().__init__(config)
        self._worker = worker

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._worker.stop()
        await super().shutdown(sockets)


def serve(model: TokenModel, served: Served, host: str, port: int) -> None:
    """Answers requests until SIGINT or SIGTERM.

    Args:
        model: in evaluation mode.
        served: its name and tokenizer, and the limits.
        host, port: where to listen; port 0 takes a free one.

    Raises:
        OSError: the address cannot be bound.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, port), family=family, backlog=1024) as listener:
        where, bound, *_ = listener.getsockname()
        shown = f"[{where}]" if ":" in where else where
        print(f"serving {served.name} at http://{shown}:{bound}", flush=True)
        worker = Worker(model, served)
        config = uvicorn.Config(
            build_app(worker, served),
            http=_Protocol,
            ws="none",
            lifespan="on",
            proxy_headers=False,
            log_level="error",
            access_log=False,
            server_header=False,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=int(served.limits.shutdown_timeout) + 5,
        )
        for number in (signal.SIGINT, signal.SIGTERM):
            # uvicorn raises them again at the end for the handlers it found; a requested shutdown is no error.
            signal.signal(number, lambda *_: None)
        _Server(config, worker).run(sockets=[listener])
