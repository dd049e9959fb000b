"""What is wrong with a request, as the protocol says it: a status and one JSON object."""

from __future__ import annotations

from typing import Any


class ApiError(Exception):
    """A request that is refused or failed: the HTTP status, the message, the field, and a code for programs."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    @property
    def body(self) -> dict[str, Any]:
        """The JSON object."""
        kind = "rate_limit_error" if self.status == 429 else "invalid_request_error"
        kind = "server_error" if self.status >= 500 else kind
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def invalid(param: str | None, message: str) -> ApiError:
    """A field with a wrong value."""
    return ApiError(400, message, param, "invalid_value")
