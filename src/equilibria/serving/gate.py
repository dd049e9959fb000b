"""Who comes in: the names by which the server may be called, and the keys that open it."""

from __future__ import annotations

import hmac
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from starlette.datastructures import Headers

from equilibria.errors import UserError
from equilibria.serving.errors import ApiError

_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_OPEN = ("/health", "/ready", "/", "/page.css", "/page.js")  # of these no key is asked


@dataclass(frozen=True)
class Gate:
    """Who may ask.

    Args:
        hosts: names of the server in requests, beside those of this machine alone; `*` for any.
        keys: one of which a request must have; none for no keys.

    Raises:
        UserError: a key is empty, or begins or ends with white space, which requests cannot say.
    """

    hosts: Sequence[str] = ()
    keys: Sequence[str] = ()

    def __post_init__(self) -> None:
        for key in self.keys:
            if not key or key != key.strip():
                found = "white space around one" if key.strip() else "an empty one"
                raise UserError(f"--api-key wants a key, found {found}; is the variable set that it comes from?")

    def check(self, path: str, headers: Headers) -> None:
        """Raises an ApiError for a request that may not come in: by another name (421), or without a key (401).

        A page of another site can have its visitor's browser ask servers on his own machine (DNS rebinding): such a
        request has the name of that site.
        """
        host = _name(headers.get("host", ""))
        if "*" not in self.hosts and host not in (*_LOOPBACK, *map(str.lower, self.hosts)):
            message = f"this server is not {host!r:.80}; start it with --allowed-host to give it that name"
            raise ApiError(421, message, code="unknown_host")
        if self.keys and path not in _OPEN and self.key(headers) is None:
            found = "no key" if "authorization" not in headers else "another key"
            message = f"the server asks for its API key as a bearer token; found {found}"
            raise ApiError(401, message, code="invalid_api_key")

    def key(self, headers: Headers) -> int | None:
        """The number of a request's key; takes the same time for every wrong one."""
        kind, _, given = headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer":
            return None
        value = given.strip().encode("latin-1")  # the bytes, as they were sent
        right = [hmac.compare_digest(value, key.encode()) for key in self.keys]
        return right.index(True) if any(right) else None

    def client(self, address: str | None, headers: Headers) -> Hashable:
        """Whose places a request takes: its key's where there are several, otherwise its address's."""
        return self.key(headers) if len(self.keys) > 1 else address


def _name(host: str) -> str:
    """The name in a Host header, without the port and a name's last dot."""
    name = host.partition("]")[0][1:] if host.startswith("[") else host.partition(":")[0]
    return name.lower().removesuffix(".")
