"""What a server allows."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds on requests; each is refused with a reason beyond them.

    Args:
        max_batch: texts that are decoded together.
        max_queue: texts that wait for a place.
        max_tokens: new tokens of a text.
        max_prompt_tokens: tokens of a prompt.
        max_body_bytes: bytes of a request.
        request_timeout: seconds from a request's arrival to its end.
        shutdown_timeout: seconds that running requests are given when the server is told to stop.

    Raises:
        ValueError: a number is not positive and finite.
    """

    max_batch: int = 32
    max_queue: int = 256
    max_tokens: int = 1024
    max_prompt_tokens: int = 2048
    max_body_bytes: int = 1_000_000
    request_timeout: float = 60.0
    shutdown_timeout: float = 10.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 < value < math.inf:
                raise ValueError(f"{name} must be above 0 and finite, found {value}")
