"""Who comes in: by which name, with which key."""

from __future__ import annotations

import pytest
from starlette.datastructures import Headers

from equilibria.errors import UserError
from equilibria.serving.errors import ApiError
from equilibria.serving.gate import Gate


def refused(gate: Gate, path: str = "/v1/models", **headers: str) -> int | None:
    """The status of the refusal; None where a request comes in."""
    try:
        gate.check(path, Headers({"host": "localhost", **headers}))
    except ApiError as problem:
        return problem.status
    return None


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:8000", "LOCALHOST", "localhost.", "127.0.0.1:1", "[::1]:80", "[::1]"]
)
def test_names_of_this_machine_alone_come_in(host: str) -> None:
    assert refused(Gate(), host=host) is None


@pytest.mark.parametrize(
    "host",
    ["", "evil.com", "localhost.evil.com", "127.0.0.1.evil.com", "evil.com:127.0.0.1", "[::2]", "::1", "a@localhost"],
)
def test_other_names_do_not_unless_they_are_given(host: str) -> None:
    assert refused(Gate(), host=host) == 421
    assert refused(Gate(hosts=["*"]), host=host) is None


def test_a_given_name_comes_in() -> None:
    gate = Gate(hosts=["Models.example"])
    assert refused(gate, host="models.EXAMPLE:80") is None
    assert refused(gate, host="localhost") is None
    assert refused(gate, host="example") == 421


def test_a_key_is_asked_for() -> None:
    gate = Gate(keys=["sésame", "other"])
    for wrong in ("", "Bearer", "Bearer ", "Bearer sésam", "Basic sésame", "Bearer other2", "sésame"):
        assert refused(gate, authorization=wrong.encode().decode("latin-1")) == 401
    assert refused(gate) == 401
    for right in ("Bearer sésame", "bearer  other "):
        assert refused(gate, authorization=right.encode().decode("latin-1")) is None
    assert [refused(gate, path) for path in ("/health", "/ready", "/", "/page.js")] == [None] * 4
    assert [refused(gate, path) for path in ("/metrics", "/v1/completions", "/none")] == [401] * 3


def test_a_client_is_its_key_or_its_address() -> None:
    other = Headers({"authorization": "Bearer b"})
    assert Gate(keys=["a"]).client("1.2.3.4", other) == "1.2.3.4"
    assert Gate(keys=["a", "b"]).client("1.2.3.4", other) == 1


@pytest.mark.parametrize("key", ["", " ", "a\n"])
def test_a_key_that_no_request_can_say_is_refused(key: str) -> None:
    with pytest.raises(UserError, match="--api-key wants a key, found"):
        Gate(keys=["a", key])
