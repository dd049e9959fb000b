"""Answers as the protocols have them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from equilibria.data.tokenizers import byte_tokenizer
from equilibria.inference.text_stream import TextStream
from equilibria.inference.writing import Likelihood, Piece
from equilibria.serving.fields import ChatFields, CompletionFields
from equilibria.serving.request import Served, ServerLimits, TextsRequest, read_request
from equilibria.serving.responses import Answer, ChatAnswer
from equilibria.serving.worker import Scored, Wrote

SERVED = Served("m", byte_tokenizer(), 40, True, True, ServerLimits())
TOP = ((ord("a"), -0.5), (ord("b"), -1.5))


def completion(**more: Any) -> TextsRequest:
    return read_request({"model": "m", **more}, SERVED, CompletionFields)


def chat(**more: Any) -> TextsRequest:
    messages = [{"role": "user", "content": "ab"}]
    return read_request({"model": "m", "messages": messages, **more}, SERVED, ChatFields)


def events(request: TextsRequest, tokens: bytes, index: int = 0, top: int | None = None) -> Iterator[Wrote]:
    """What a worker tells of a text of these tokens, each with the same likely ones."""
    stream = TextStream(byte_tokenizer(), request.prompts[0])
    for place, token in enumerate(tokens):
        likelihood = None if top is None else Likelihood(-3.0 if token > 98 else -0.5, TOP[:top], True)
        last = place == len(tokens) - 1
        said = stream.write(token) + (stream.finish() if last else "")
        yield Wrote(index, Piece(token, stream.offset, said, 7, True, 1e-4, likelihood, "length" if last else None))


def whole(request: TextsRequest, *tokens: bytes, top: int | None = None) -> dict[str, Any]:
    answer = (ChatAnswer if isinstance(request.asked, ChatFields) else Answer)(request, SERVED)
    choices = []
    if request.scores:
        scores = [Likelihood(-2.0, TOP[:top], None)] * (len(request.prompts[0]) - 1)
        assert answer.choice(Scored(0, scores)) is None
    for index, one in enumerate(tokens):
        choices += [answer.choice(event) for event in events(request, one, index, top)]
    assert answer.finished
    made = answer.whole([choice for choice in choices if choice is not None])
    assert json.loads(json.dumps(made)) == made
    return made


@pytest.mark.parametrize("top", [0, 1, 2])
def test_the_drawn_token_is_among_the_likely_ones(top: int) -> None:
    logprobs = whole(completion(prompt="x", logprobs=top), b"ac", top=top)["choices"][0]["logprobs"]
    for token, value, rivals in zip(*(logprobs[n] for n in ("tokens", "token_logprobs", "top_logprobs")), strict=True):
        assert rivals[token] == value
        assert len(rivals) in (max(top, 1), top + 1)
    assert logprobs["tokens"] == ["a", "c"]


def test_the_drawn_token_is_among_the_likely_ones_of_an_echo() -> None:
    request = completion(prompt="xyz", logprobs=0, echo=True)
    logprobs = whole(request, b"a", top=0)["choices"][0]["logprobs"]
    assert logprobs["top_logprobs"] == [None, {"y": -2.0}, {"z": -2.0}, {"a": -0.5}]


@pytest.mark.parametrize("echo", [False, True])
@pytest.mark.parametrize("cut", [1, 2])
def test_a_character_that_the_prompt_begins_and_the_text_completes_is_whole(cut: int, echo: bool) -> None:
    ids, rest = [*b"n", *"€".encode()[:cut]], "€".encode()[cut:] + b"!"
    request = completion(prompt=ids, echo=echo)
    assert whole(request, rest)["choices"][0]["text"] == ("n€!" if echo else "€!")
    broken = whole(request, b"!!")["choices"][0]["text"]
    assert broken == ("n\ufffd!!" if echo else "\ufffd!!")


def test_an_echo_alone_ends_as_it_is() -> None:
    request = completion(prompt=[*b"n", 0xE2], echo=True, max_tokens=0)
    answer = Answer(request, SERVED)
    assert answer.finished
    assert answer.whole(answer.echoes())["choices"][0]["text"] == "n\ufffd"


def test_a_completion_tells_of_its_solves() -> None:
    made = whole(completion(prompt="x", n=2, tolerance=0.5), b"ab", b"c")
    assert (made["object"], made["effort"]) == ("text_completion", {"tolerance": 0.3, "max_evaluations": None})
    first, second = made["choices"]
    assert (first["evaluations"], first["converged"], first["residual"]) == ([7, 7], [True, True], [1e-4, 1e-4])
    assert (second["index"], second["text"], second["finish_reason"]) == (1, "c", "length")
    assert "effort" not in whole(completion(prompt="x"), b"a")


def test_a_chat_is_told_as_a_message() -> None:
    made = whole(chat(logprobs=True, top_logprobs=1), "né".encode()[:2], top=1)
    assert (made["object"], made["id"][:9]) == ("chat.completion", "chatcmpl-")
    (choice,) = made["choices"]
    assert choice["message"] == {"role": "assistant", "content": "n\ufffd", "refusal": None}
    first, half = choice["logprobs"]["content"]
    top = [{"token": "a", "logprob": -0.5, "bytes": [97]}]
    assert first == {"token": "n", "logprob": -3.0, "bytes": [110], "top_logprobs": top}
    assert (half["token"], half["bytes"]) == ("token_id:195", None)
    assert made["usage"] == {"prompt_tokens": 2, "completion_tokens": 2, "total_tokens": 4}


def test_a_stream_of_a_chat_begins_with_the_role() -> None:
    request = chat(stream=True, stream_options={"include_usage": True}, n=2)
    answer, deltas = ChatAnswer(request, SERVED), {0: [], 1: []}
    for event in (*events(request, b"ab", 0), *events(request, b"c", 1)):
        choice = answer.choice(event)
        assert choice is not None
        chunk = answer.chunk([choice])
        assert (chunk["object"], chunk["usage"]) == ("chat.completion.chunk", None)
        deltas[chunk["choices"][0]["index"]].append(chunk["choices"][0]["delta"])
    assert deltas[0] == [{"role": "assistant", "content": "a"}, {"content": "b"}]
    assert deltas[1] == [{"role": "assistant", "content": "c"}]
    assert answer.last_chunk()["usage"]["completion_tokens"] == 3
