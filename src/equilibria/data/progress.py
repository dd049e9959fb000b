"""Progress of long work on data: lines, and bars where the size of the work is known."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Progress(Protocol):
    """Receives progress updates."""

    def say(self, sentence: str) -> None:
        """Shows a line."""
        ...

    def bar(self, sentence: str, total: int | None) -> AbstractContextManager[Callable[[int], None]]:
        """A context around work, which yields a function to call with each number of bytes done.

        Args:
            sentence: what the work is.
            total: about how many bytes it has; None if unknown.
        """
        ...


class _Unwatched:
    def say(self, sentence: str) -> None:
        pass

    @contextmanager
    def bar(self, sentence: str, total: int | None) -> Iterator[Callable[[int], None]]:
        yield lambda amount: None


UNWATCHED: Progress = _Unwatched()
"""Ignores all updates."""
