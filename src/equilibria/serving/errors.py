"""What is wrong with a request, as the protocol says it: a status and one JSON object."""

from __future__ import annotations

from typing import Any


class ApiError(Exception):
    """A request that is refused, or that could not be finished.

    Args:
        status: of HTTP.
        message: what is wrong, what was found, how to mend it.
        param: the field it is about.
        code: a word for programs.
    """

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    @property
    def body(self) -> dict[str, Any]:
        """The JSON object."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        if self.status == 429:
            kind = "rate_limit_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def invalid(param: str | None, message: str) -> ApiError:
    """A field that is not as it must be."""
    return ApiError(400, message, param, "invalid_value")
