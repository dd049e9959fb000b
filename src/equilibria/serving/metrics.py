"""Figures of a server, in the text format of Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from equilibria.inference.writing import Piece
from equilibria.serving.jobs import Desk

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)
_EVALUATIONS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 128)


class Metrics:
    """Counts what a server does; each has a registry of its own."""

    def __init__(self, desk: Desk) -> None:
        registry = self._registry = CollectorRegistry()

        def name(last: str) -> str:
            return f"equilibria_{last}"

        self._requests = Counter(
            name("requests"), "Answers by route and status.", ["route", "status"], registry=registry
        )
        self._read = Counter(name("prompt_tokens"), "Tokens of prompts.", registry=registry)
        self._written = Counter(name("written_tokens"), "Tokens written.", registry=registry)
        self._unconverged = Counter(
            name("unconverged_tokens"), "Tokens read or written whose solve did not converge.", registry=registry
        )
        self._evaluations = Histogram(
            name("evaluations_per_token"),
            "Evaluations of the cell that a written token took.",
            buckets=_EVALUATIONS,
            registry=registry,
        )
        self._first = Histogram(
            name("first_token_seconds"),
            "Seconds from a request's arrival to its first token.",
            buckets=_SECONDS,
            registry=registry,
        )
        for last, what, figure in (
            ("texts_running", "Texts that are being written.", lambda: desk.running),
            ("texts_waiting", "Texts that have not been begun.", lambda: desk.waiting),
            ("stalled", "1 where the model does not answer.", lambda: desk.stalled),
        ):
            Gauge(name(last), what, registry=registry).set_function(figure)

    def answered(self, route: str, status: int) -> None:
        """One more answer."""
        self._requests.labels(route, str(status)).inc()

    def read(self, tokens: int) -> None:
        """A prompt has been taken in."""
        self._read.inc(tokens)

    def began(self, seconds: float) -> None:
        """A request has its first token."""
        self._first.observe(seconds)

    def wrote(self, piece: Piece) -> None:
        """One more token."""
        self._written.inc()
        if piece.evaluations is not None:
            self._evaluations.observe(piece.evaluations)
        self.solved(piece.converged)

    def solved(self, converged: bool | None) -> None:
        """A solve has ended."""
        if converged is False:
            self._unconverged.inc()

    def text(self) -> bytes:
        """All of them."""
        return generate_latest(self._registry)
