"""Connections: how many there may be, how long each may take to say what it wants, and what malformed ones hear."""

from __future__ import annotations

import asyncio
import json
import os
import resource
from typing import Any, cast

import h11
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from equilibria.serving.errors import ApiError

ACCEPTED_AT_ONCE = 8
"""Connections that are taken from the system's queue together, before any of them can be closed again."""
KEEP_ALIVE_SECONDS = 15
"""For which a connection without a request stays open after an answer."""

_HEAD_SECONDS = 10.0  # for the head of a request to arrive
_HALF_OPEN_SECONDS = 1.0  # for which a client that says no more is taken for one that listens: it may be gone
_UNREAD_SECONDS = 30.0  # for which a client may read nothing of its answer
_RESERVED = 4 * ACCEPTED_AT_ONCE  # descriptors for connections on their way in or out, and for files
_MOST = 1024


def allowed_connections() -> int:
    """How many connections the process has descriptors for beside those it has open, 1024 at most."""
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if descriptors == resource.RLIM_INFINITY:
        return _MOST
    return max(1, min(_MOST, descriptors - len(os.listdir("/proc/self/fd")) - _RESERVED))


class Connection(H11Protocol):
    """HTTP on one connection.

    Where there is no room for one more, the one that has been without a whole request for longest is closed; where all
    have one, the new one is told so. So connections that do nothing keep nobody out.

    Args:
        most: connections at most.
    """

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        most: int,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._most = most
        self._since = self.loop.time()
        self._head_timer: asyncio.TimerHandle | None = None
        self._unread_timer: asyncio.TimerHandle | None = None

    @property
    def idle(self) -> bool:
        """Whether nothing is being done for it: no request is whole, or the last one has been answered."""
        return self.cycle is None or self.cycle.response_complete or self.cycle.more_body

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore
        super().connection_made(transport)
        others = [one for one in cast("set[Connection]", self.connections) if one is not self]
        if len(others) >= self._most:
            idle = [one for one in others if one.idle and not one.transport.is_closing()]
            if not idle:
                self._refuse(
                    ApiError(503, "the server has no room for another connection", code="too_many_connections")
                )
                return
            min(idle, key=lambda one: one._since).transport.abort()
        self._watch_head()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._head_timer, self._unread_timer):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch_head()

    def on_response_complete(self) -> None:
        self._since = self.loop.time()
        super().on_response_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._unread_timer is None:
            self._unread_timer = self.loop.call_later(_UNREAD_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._unread_timer is not None:
            self._unread_timer.cancel()
            self._unread_timer = None

    def send_400_response(self, msg: str) -> None:
        self._refuse(ApiError(400, f"malformed HTTP request: {msg}"))

    def handle_events(self) -> None:
        # An unknown version of HTTP is refused here: h11 would answer it.
        line, end, _ = self.conn.trailing_data[0].partition(b"\r\n")
        if end and self.conn.their_state is h11.IDLE and not line.endswith((b" HTTP/1.1", b" HTTP/1.0")):
            self.send_400_response("its first line must end with HTTP/1.1")
            return
        super().handle_events()

    def eof_received(self) -> bool:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Returns whether the connection stays open for now: who has said all may still listen, for a moment."""
        if self.cycle is None or self.cycle.response_complete:
            return False
        if not self.cycle.response_started and self.cycle.more_body:
            self.send_400_response("the body is shorter than its content-length")
        else:
            self.loop.call_later(_HALF_OPEN_SECONDS, self.transport.abort)
        return True

    def _watch_head(self) -> None:
        """Sees to it that the head of a request arrives in time, from the connection's or the head's beginning on."""
        waits = self.conn.their_state is h11.IDLE and self.timeout_keep_alive_task is None
        if waits and self._head_timer is None:
            late = ApiError(408, "the head of the request did not arrive in time", code="timeout")
            self._head_timer = self.loop.call_later(_HEAD_SECONDS, self._refuse, late)
        elif not waits and self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _refuse(self, problem: ApiError) -> None:
        """Answers and closes, whatever the state of the connection is."""
        if self.transport.is_closing():
            return
        body = json.dumps(problem.body).encode()
        reason = {400: "Bad Request", 408: "Request Timeout", 503: "Service Unavailable"}[problem.status]
        head = f"HTTP/1.1 {problem.status} {reason}\r\ncontent-type: application/json\r\n"
        head += f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        self.transport.write(head.encode() + body)
        self.transport.close()
