"""Clients of others speak to `equilibria serve`; each is left out where it is not installed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from cli.test_serve import Server, start, written
from equilibria.models.sampling import Sampling

# What these packages warn of is theirs.
pytestmark = pytest.mark.filterwarnings("ignore")

MESSAGES: Any = [{"role": "system", "content": "the"}, {"role": "user", "content": "cat"}]


@pytest.fixture(scope="module")
def server(run: Path) -> Iterator[Server]:
    started = start(run)
    yield started
    started.process.kill()
    started.process.communicate()


@pytest.fixture
def expected(run: Path) -> str:
    """The greedy continuation of the messages."""
    return bytes(written(run, "the\ncat", 9, 0, Sampling(0.0))).decode("utf-8", "replace")


def test_litellm(server: Server, expected: str) -> None:
    litellm = pytest.importorskip("litellm", reason="LiteLLM is not installed")
    options: dict[str, Any] = {"api_base": f"{server.address}/v1", "api_key": "none", "max_tokens": 9, "temperature": 0}
    chat = {**options, "model": "openai/shared", "messages": MESSAGES}
    answer = litellm.completion(**chat, logprobs=True, top_logprobs=2)
    assert answer.choices[0].message.content == expected
    assert answer.usage.completion_tokens == 9
    chunks = litellm.completion(**chat, stream=True, stream_options={"include_usage": True})
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == expected
    text = litellm.text_completion(**options, model="text-completion-openai/shared", prompt="the\ncat")
    assert text.choices[0].text == expected
    long = [{"role": "user", "content": "a" * 3000}]
    with pytest.raises(litellm.ContextWindowExceededError):
        litellm.completion(**{**chat, "messages": long})
    with pytest.raises(litellm.NotFoundError):
        litellm.completion(**{**chat, "model": "openai/other"})


def test_langchain(server: Server, expected: str) -> None:
    langchain = pytest.importorskip("langchain_openai", reason="langchain-openai is not installed")
    options = {
        "base_url": f"{server.address}/v1",
        "api_key": "none",
        "model": "shared",
        "temperature": 0,
        "max_tokens": 9,
    }
    chat = langchain.ChatOpenAI(**options)
    said = [("system", "the"), ("user", "cat")]
    assert chat.invoke(said).content == expected
    assert "".join(part.content for part in chat.stream(said)) == expected
    assert [answer.content for answer in chat.batch([said, said])] == [expected] * 2
    assert langchain.OpenAI(**options).invoke("the\ncat") == expected


def test_the_openai_client(server: Server, expected: str) -> None:
    with openai.OpenAI(base_url=f"{server.address}/v1", api_key="none", max_retries=0) as client:
        options: dict[str, Any] = {"model": "shared", "temperature": 0, "max_tokens": 9}
        assert client.chat.completions.create(messages=MESSAGES, **options).choices[0].message.content == expected
        with client.chat.completions.stream(messages=MESSAGES, **options) as stream:
            assert "".join(event.delta for event in stream if event.type == "content.delta") == expected
        assert client.completions.create(prompt="the\ncat", **options).choices[0].text == expected
