"""Requests that a completions server must refuse: seeded, each with the reason why it is wrong."""

from __future__ import annotations

import json
import random
import string
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

_PATH = b"/v1/completions"
_DEEP = 200_000


@dataclass(frozen=True)
class Malformed:
    """Bytes for a connection of their own.

    Attributes:
        kind: what is wrong.
        data: what is sent, whole.
    """

    kind: str
    data: bytes


def malformed(seed: int, count: int, model: str, vocabulary_size: int) -> Iterator[Malformed]:
    """So many requests, the kinds in turn.

    Args:
        seed: of what is chosen within a kind.
        count: how many.
        model: the server's.
        vocabulary_size: of the model.
    """
    choose = random.Random(seed)
    makers = [*_JSON.items(), *_HTTP.items()]
    for number in range(count):
        kind, make = makers[number % len(makers)]
        right = {"model": model, "prompt": "The", "max_tokens": 4, "seed": choose.randrange(100)}
        made = make(choose, right, vocabulary_size)
        yield Malformed(kind, made if isinstance(made, bytes) else _post(json.dumps(made).encode()))


def mutated(seed: int, count: int, model: str) -> Iterator[bytes]:
    """Requests in order, damaged in a few places: what they ask for then may be right or wrong."""
    choose = random.Random(seed)
    words = [json.dumps(one).encode() for one in (*_NUMBERS, *_INTEGERS, "prompt", "messages", "role", "user", "stop")]
    words += [b"null", b"-1", b"1e400", b"[]", b"{}", b"\\ud800", b"\xff", b"\r\n", b": ", b"\x00", b"0\r\n\r\n"]
    for _ in range(count):
        messages = [{"role": "user", "content": "The"}]
        wanted: dict[str, Any] = choose.choice([{"prompt": "The"}, {"prompt": [1, 2]}, {"messages": messages}])
        options = {"temperature": 0.5, "stop": ["a", "b"], "logprobs": None, "n": 2, "stream": choose.random() < 0.5}
        body = json.dumps({"model": model, **wanted, "max_tokens": 2, **options}).encode()
        data = bytearray(_post(body))
        if "messages" in wanted:
            data = data.replace(_PATH, b"/v1/chat/completions", 1)
        for _ in range(choose.randint(1, 4)):
            place, length = choose.randrange(len(data) + 1), choose.choice([0, 1, 1, 2, 8])
            again, byte = bytes(data[place : place + 9]), bytes([choose.randrange(256)])
            data[place : place + length] = choose.choice([b"", byte, again, choose.choice(words)])
        yield bytes(data)


def _post(body: bytes, length: str | None = None, kind: str = "application/json", verb: str = "POST") -> bytes:
    head = f"host: localhost\r\ncontent-type: {kind}\r\ncontent-length: {length or len(body)}\r\nconnection: close\r\n"
    return verb.encode() + b" " + _PATH + b" HTTP/1.1\r\n" + head.encode() + b"\r\n" + body


Maker = Callable[[random.Random, dict[str, Any], int], "dict[str, Any] | list[Any] | str | bytes"]


def _word(choose: random.Random) -> str:
    return "".join(choose.choices(string.ascii_lowercase, k=choose.randint(1, 12)))


_NUMBERS = ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "tolerance")
_INTEGERS = ("max_tokens", "n", "top_k", "logprobs", "max_evaluations", "seed")
_SWITCHES = ("stream", "echo", "stop_at_end")
_OTHER = ("one", [], {}, [1], {"a": 1})


def _raw_number(choose: random.Random, right: dict[str, Any], literal: str) -> bytes:
    """A number that Python's json would not write."""
    name = choose.choice(_NUMBERS)
    return _post(json.dumps(right)[:-1].encode() + f', "{name}": {literal}}}'.encode())


def _damaged(choose: random.Random, right: dict[str, Any], _: int) -> bytes:
    body = json.dumps(right).encode()
    return _post(body[: choose.randint(1, len(body) - 1)])


def _not_utf8(choose: random.Random, right: dict[str, Any], _: int) -> bytes:
    body = json.dumps(right).encode()
    place = body.index(b"The")
    return _post(body[:place] + bytes([choose.randint(0x80, 0xFF)]) + body[place:])


def _ids(choose: random.Random, size: int) -> Any:
    wrong = choose.choice([size, -1, 1.5, True, None, "a", 10**30, size + choose.randrange(1000)])
    ids = [choose.randrange(size), wrong, choose.randrange(size)]
    return choose.choice([ids, [[1], ids]])


_JSON: dict[str, Maker] = {
    "no JSON": lambda c, r, v: _post(_word(c).encode()),
    "JSON cut short": _damaged,
    "not UTF-8": _not_utf8,
    "not an object": lambda c, r, v: c.choice([[r], "text", [], [1, 2]]),
    "nested too deeply": lambda c, r, v: _post(b"[" * _DEEP + b"]" * _DEEP),
    "NaN": lambda c, r, v: _raw_number(c, r, c.choice(["NaN", "-NaN", "nan"])),
    "infinity": lambda c, r, v: _raw_number(c, r, c.choice(["Infinity", "-Infinity", "1e999", "-1e999"])),
    "an endless integer": lambda c, r, v: _raw_number(c, r, "9" * c.choice([400, 5000])),
    "a key twice": lambda c, r, v: _post(json.dumps(r)[:-1].encode() + b', "prompt": "again"}'),
    "a number of another type": lambda c, r, v: {**r, c.choice(_NUMBERS): c.choice([*_OTHER, True])},
    "an integer of another type": lambda c, r, v: {**r, c.choice(_INTEGERS): c.choice([*_OTHER, False, 1.5])},
    "a switch of another type": lambda c, r, v: {**r, c.choice(_SWITCHES): c.choice([*_OTHER, 0, 1])},
    "a negative number": lambda c, r, v: {**r, c.choice([*_NUMBERS[:4], "tolerance"]): -c.uniform(0.01, 1e6)},
    "a negative integer": lambda c, r, v: {**r, c.choice(_INTEGERS[:-1]): -c.randint(1, 10**20)},
    "zero": lambda c, r, v: {**r, c.choice(["max_tokens", "n", "top_k", "max_evaluations", "tolerance"]): 0},
    "a huge number": lambda c, r, v: {**r, c.choice(_NUMBERS): c.choice([1e6, 1e30, 1.7e308])},
    "a huge integer": lambda c, r, v: {**r, c.choice(_INTEGERS): 10 ** c.randint(19, 300)},
    "another model": lambda c, r, v: {**r, "model": c.choice([_word(c) + "?", "", "../" + r["model"]])},
    "a model that is no name": lambda c, r, v: {**r, "model": c.choice([1, True, ["a"], {}])},
    "no model": lambda c, r, v: {name: value for name, value in r.items() if name != "model"},
    "no prompt": lambda c, r, v: {name: value for name, value in r.items() if name != "prompt"},
    "an unknown field": lambda c, r, v: {**r, "x" + _word(c): c.choice([1, "a", [], {}])},
    "a field not supported": lambda c, r, v: {
        **r,
        **c.choice([{"suffix": "s"}, {"best_of": 5}, {"logit_bias": {"1": 2}}, {"best_of": True}]),
    },
    "a prompt of another type": lambda c, r, v: {**r, "prompt": c.choice([1, 1.5, True, {}, {"a": 1}, [], [[]]])},
    "prompts of several types": lambda c, r, v: {**r, "prompt": c.choice([["a", 1], [1, "a"], [[1], "a"], [None]])},
    "wrong token ids": lambda c, r, v: {**r, "prompt": _ids(c, v)},
    "more effort than allowed": lambda c, r, v: {
        **r,
        **c.choice([{"tolerance": 1e-30}, {"max_evaluations": 1000}, {"tolerance": 5e-324, "max_evaluations": 999}]),
    },
    "a text too long": lambda c, r, v: {**r, "prompt": _word(c) * c.randint(66_000, 80_000)},
    "a prompt too long": lambda c, r, v: {**r, "prompt": [c.randrange(v)] * c.randint(5000, 9000)},
    "half a surrogate pair": lambda c, r, v: {
        **r,
        c.choice(["prompt", "stop", "user"]): "a" + chr(c.randint(0xD800, 0xDFFF)),
    },
    "a stop that is none": lambda c, r, v: {**r, "stop": c.choice([1, True, {}, [1], [""], "", [None], ["a"] * 99])},
    "stream options without a stream": lambda c, r, v: {**r, "stream_options": {"include_usage": True}},
    "wrong stream options": lambda c, r, v: {**r, "stream": True, "stream_options": c.choice([1, [], {"a": 1}, "x"])},
    "too many texts": lambda c, r, v: {**r, "prompt": ["The"] * c.randint(129, 300)},
}

_HTTP: dict[str, Maker] = {
    "another method": lambda c, r, v: _post(json.dumps(r).encode(), verb=c.choice(["GET", "PUT", "DELETE", "PATCH"])),
    "another path": lambda c, r, v: (
        f"GET /{_word(c)}/{_word(c)} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n".encode()
    ),
    "another kind of content": lambda c, r, v: _post(
        json.dumps(r).encode(), kind=c.choice(["text/plain", "a", "image/png"])
    ),
    "a body too large": lambda c, r, v: _post(b'{"prompt": "' + b"a" * 1_100_000 + b'"}'),
    "a length that is none": lambda c, r, v: _post(json.dumps(r).encode(), length=c.choice(["-1", "x", "1.5", "1,2"])),
    "shorter than its length": lambda c, r, v: _post(b"{", length=str(c.randint(2, 90))),
    "longer than its length": lambda c, r, v: _post(json.dumps(r).encode(), length=str(c.randint(1, 10))),
    "no HTTP": lambda c, r, v: c.randbytes(c.randint(1, 300)).replace(b"\n", b"") + b"\r\n\r\n",
    "a header that is none": lambda c, r, v: b"POST /v1/completions HTTP/1.1\r\n" + _word(c).encode() + b"\r\n\r\n",
    "no host": lambda c, r, v: b"GET /health HTTP/1.1\r\n\r\n",
    "another version": lambda c, r, v: (
        b"GET /health HTTP/" + c.choice([b"9.9", b"x", b"1"]) + b"\r\nhost: localhost\r\n\r\n"
    ),
    "another host": lambda c, r, v: f"GET /health HTTP/1.1\r\nhost: {_word(c)}.com\r\n\r\n".encode(),
}
