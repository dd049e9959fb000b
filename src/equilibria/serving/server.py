"""The process that listens: uvicorn, with JSON answers to malformed requests, and a graceful shutdown."""

from __future__ import annotations

import json
import signal
import socket

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from equilibria.models import TokenModel
from equilibria.serving.app import build_app
from equilibria.serving.errors import ApiError
from equilibria.serving.request import Served
from equilibria.serving.worker import Worker

_KEEP_ALIVE_SECONDS = 15


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
