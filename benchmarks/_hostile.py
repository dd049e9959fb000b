"""Clients that a server must bear: idle and slow connections, texts too long, endless efforts, answers nobody reads."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

ADDRESS = "127.0.0.2"
"""Where hostile clients ask from: a server that shares by client can tell them from others."""


@dataclass
class Hostile:
    """Connections of several kinds, each begun again when the server ends it.

    Args:
        server: its address.
        model: its name.
        seconds: for which they go on.

    Attributes:
        answers: statuses by kind; 0 where the connection was closed without one.
    """

    server: str
    model: str
    seconds: float
    answers: dict[str, Counter[int]] = field(default_factory=dict)

    async def run(self, count: int) -> None:
        """So many connections, the kinds in turn."""
        kinds = [*_KINDS.items()]
        end = time.perf_counter() + self.seconds
        await asyncio.gather(*(self._again(*kinds[number % len(kinds)], number, end) for number in range(count)))

    async def _again(self, kind: str, act: Act, number: int, end: float) -> None:
        choose = random.Random(number)
        while time.perf_counter() < end:
            status = 0
            with suppress(OSError, asyncio.IncompleteReadError, TimeoutError):
                async with asyncio.timeout_at(asyncio.get_running_loop().time() + max(0.1, end - time.perf_counter())):
                    status = await self._once(act, choose)
            self.answers.setdefault(kind, Counter())[status] += 1
            await asyncio.sleep(choose.uniform(0.05, 0.5))

    async def _once(self, act: Act, choose: random.Random) -> int:
        where = urlsplit(self.server)
        reader, writer = await asyncio.open_connection(where.hostname, where.port, local_addr=(ADDRESS, 0))
        try:
            await act(self, reader, writer, choose)
            head = await reader.read(12)
            return int(head[9:12]) if head[9:12].isdigit() else 0
        finally:
            writer.close()

    def post(self, asked: dict[str, Any]) -> bytes:
        """A request for a completion."""
        return self.head(len(body := json.dumps({"model": self.model, "prompt": "The", **asked}).encode())) + body

    def head(self, length: int) -> bytes:
        """Its head."""
        lines = [
            "POST /v1/completions HTTP/1.1",
            "host: localhost",
            "content-type: application/json",
            f"content-length: {length}",
            "",
            "",
        ]
        return "\r\n".join(lines).encode()


Act = Callable[[Hostile, asyncio.StreamReader, asyncio.StreamWriter, random.Random], Awaitable[None]]


async def _idle(hostile: Hostile, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, _: random.Random) -> None:
    """Says nothing."""


async def _drip(data: bytes, writer: asyncio.StreamWriter) -> None:
    for byte in data:
        writer.write(bytes([byte]))
        await writer.drain()
        await asyncio.sleep(0.5)


async def _slow_head(
    hostile: Hostile, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, _: random.Random
) -> None:
    await _drip(hostile.head(100), writer)


async def _slow_body(
    hostile: Hostile, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, _: random.Random
) -> None:
    writer.write(hostile.head(1000))
    await _drip(b" " * 1000, writer)


def _asking(make: Callable[[random.Random], dict[str, Any]]) -> Act:
    async def act(
        hostile: Hostile, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, choose: random.Random
    ) -> None:
        writer.write(hostile.post(make(choose)))
        await writer.drain()

    return act


def _leaving(make: Callable[[random.Random], dict[str, Any]]) -> Act:
    asking = _asking(make)

    async def act(
        hostile: Hostile, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, choose: random.Random
    ) -> None:
        await asking(hostile, reader, writer, choose)
        await reader.read(choose.randint(1, 2000))
        writer.transport.abort()

    return act


async def _unread(
    hostile: Hostile, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, choose: random.Random
) -> None:
    """Asks for much, and reads nothing of it for long."""
    writer.transport.pause_reading()  # pyright: ignore[reportAttributeAccessIssue]
    writer.write(hostile.post({"n": 16, "max_tokens": 200, "stream": True, "logprobs": 5}))
    await asyncio.sleep(20)
    writer.transport.resume_reading()  # pyright: ignore[reportAttributeAccessIssue]


_KINDS: dict[str, Act] = {
    "idle": _idle,
    "a slow head": _slow_head,
    "a slow body": _slow_body,
    "idle, again": _idle,
    "a megabyte of text": _asking(lambda c: {"prompt": c.choice(["\u00e9t\u00e9 ", "abc\n", "aaaa"]) * 110_000}),
    "many stop strings": _asking(
        lambda c: {"stop": [" " * 255 + chr(97 + n) for n in range(16)], "max_tokens": c.randint(20, 60), "n": 4}
    ),
    "more effort than allowed": _asking(lambda c: {"tolerance": 1e-30, "max_evaluations": 1000, "n": 8}),
    "as much effort as allowed": _asking(
        lambda c: {"max_evaluations": c.randint(50, 100), "tolerance": 0.001, "max_tokens": 60}
    ),
    "many texts": _asking(lambda c: {"n": 32, "max_tokens": 300}),
    "many prompts": _asking(lambda c: {"prompt": ["one two " * c.randint(1, 250)] * 100}),
    "gone while it is told": _leaving(lambda c: {"n": c.randint(1, 8), "max_tokens": 300, "stream": True}),
    "never read": _unread,
}
