"""Bodies become requests in a thread beside the event loop, short ones first: encoding a long text takes its time."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Callable
from contextlib import suppress
from queue import PriorityQueue
from typing import Any, TypeVar

from equilibria.serving.errors import ApiError
from equilibria.serving.fields import Fields, parse_json
from equilibria.serving.request import Served, TextsRequest, asked, encoded, read_request, wanted

_BODIES = 4  # times the largest body may wait in all
_SHORT = 2048  # bytes that are read at once: to hand them over would take longer

Result = TypeVar("Result")


class Reader:
    """Reads requests, a piece of work at a time: the fields, then one prompt after another. For the event loop."""

    def __init__(self, served: Served) -> None:
        self._served = served
        self._waiting = 0  # bytes of the bodies that are not read yet
        self._numbers = itertools.count()
        self._work: PriorityQueue[tuple[int, int, Callable[[], None] | None]] = PriorityQueue()
        self._thread = threading.Thread(target=self._run, name="reader", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """The thread ends after the piece of work that it does."""
        self._work.put((-1, 0, None))

    def ended(self, seconds: float) -> bool:
        """Whether the thread ends within so many seconds."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    async def read(self, body: bytes, kind: type[Fields]) -> TextsRequest:
        """The request of a body; an ApiError says what is wrong with it (4xx), or that too much waits (429)."""
        served, most = self._served, _BODIES * self._served.limits.max_body_bytes
        if self._waiting + len(body) > most:
            message = f"{self._waiting} bytes of requests wait to be read already; try again later"
            raise ApiError(429, message, code="queue_full")
        if len(body) <= _SHORT:
            return read_request(parse_json(body), served, kind)
        self._waiting += len(body)
        try:
            found = await self._later(len(body), lambda: asked(parse_json(body), served, kind))
            ids = [await self._later(len(one), lambda one=one: encoded(one, served)) for one in found.prompts]
            return wanted(found, ids, served)
        finally:
            self._waiting -= len(body)

    async def _later(self, size: int, work: Callable[[], Result]) -> Result:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Result] = loop.create_future()

        def settle(set_: Callable[[Any], None], value: Any) -> None:
            if not future.done():  # who asked may be gone
                set_(value)

        def done() -> None:
            try:
                outcome = future.set_result, work()
            except Exception as problem:
                outcome = future.set_exception, problem
            with suppress(RuntimeError):  # the loop may have ended
                loop.call_soon_threadsafe(settle, *outcome)

        self._work.put((size, next(self._numbers), done))
        return await future

    def _run(self) -> None:
        while (work := self._work.get()[-1]) is not None:
            work()
