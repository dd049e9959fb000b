"""Bodies become requests beside the event loop."""

from __future__ import annotations

import asyncio
import json
from threading import Event

import pytest

from equilibria.data.tokenizers import Tokenizer, byte_tokenizer
from equilibria.serving.errors import ApiError
from equilibria.serving.fields import CompletionFields
from equilibria.serving.reading import Reader
from equilibria.serving.request import Served, ServerLimits, TextsRequest

LIMITS = ServerLimits(max_prompt_tokens=100_000, max_body_bytes=10_000, max_queue=200)


def body(prompt: str | list[str]) -> bytes:
    return json.dumps({"model": "m", "prompt": prompt}).encode()


def test_the_loop_goes_on_while_long_prompts_are_encoded_the_shortest_first(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[int] = []
    began, released, tokenizer = Event(), Event(), byte_tokenizer()
    encode = Tokenizer.encode

    def slow(self: Tokenizer, text: str) -> list[int]:
        order.append(len(text))
        began.set()
        assert released.wait(30)
        return encode(self, text)

    monkeypatch.setattr(Tokenizer, "encode", slow)
    reader = Reader(Served("m", tokenizer, 10, True, True, LIMITS))

    async def ask() -> list[TextsRequest]:
        tasks = [asyncio.create_task(reader.read(body("a" * 9000), CompletionFields))]
        while not began.is_set():
            await asyncio.sleep(0.001)
        for size in (8000, 7000, 3000):
            tasks.append(asyncio.create_task(reader.read(body("a" * size), CompletionFields)))
        await asyncio.sleep(0.01)  # the loop is free
        with pytest.raises(ApiError, match="wait to be read") as refused:  # noqa: PT012
            while True:
                tasks.append(asyncio.create_task(reader.read(body("a" * 9500), CompletionFields)))
                await asyncio.sleep(0)
                if tasks[-1].done():
                    await tasks.pop()
        assert refused.value.status == 429
        released.set()
        return await asyncio.gather(*tasks)

    read = asyncio.run(ask())
    assert [len(one.prompts[0]) for one in read][:4] == [9000, 8000, 7000, 3000]
    assert order[:4] == [9000, 3000, 7000, 8000]


def test_what_is_wrong_is_said_and_many_short_prompts_are_read() -> None:
    reader = Reader(Served("m", byte_tokenizer(), 10, True, True, LIMITS))

    async def read(content: bytes) -> TextsRequest:
        return await reader.read(content, CompletionFields)

    assert len(asyncio.run(read(body(["a" * 70] * 120))).prompts) == 120
    for content in (b"x", b"[" * 9000, body("a" * 9000).replace(b"m", b"n", 1), b'{"model": "m", "prompt": "\xff"}'):
        with pytest.raises(ApiError) as refused:
            asyncio.run(read(content))
        assert 400 <= refused.value.status < 500
    reader.close()
    assert reader.ended(30)
