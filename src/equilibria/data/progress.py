"""Progress of long work: lines, and bars where the size of the work is known."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol, TypeVar

Item = TypeVar("Item")


class Progress(Protocol):
    """Receives progress updates."""

    def say(self, sentence: str) -> None:
        """Shows a line."""
        ...

    def bar(
        self, sentence: str, total: int | None, unit: str = "bytes"
    ) -> AbstractContextManager[Callable[[int], None]]:
        """A context around work, which yields a function to call with each number of units done.

        Args:
            sentence: what the work is.
            total: about how many units it has; None if unknown.
            unit: what is counted, in the plural.
        """
        ...


class _Unwatched:
    def say(self, sentence: str) -> None:
        pass

    @contextmanager
    def bar(self, sentence: str, total: int | None, unit: str = "bytes") -> Iterator[Callable[[int], None]]:
        yield lambda amount: None


def counted(items: Iterable[Item], advance: Callable[[int], None]) -> Iterator[Item]:
    """The same items; each is reported once the next one is asked for."""
    for item in items:
        yield item
        advance(1)


UNWATCHED: Progress = _Unwatched()
"""Ignores all updates."""
