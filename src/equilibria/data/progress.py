"""What long work on data tells whoever watches: lines, and bars where the size of the work is known."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Progress(Protocol):
    """Someone who watches."""

    def say(self, sentence: str) -> None:
        """A line on what begins or has happened."""
        ...

    def bar(self, sentence: str, total: int | None) -> AbstractContextManager[Callable[[int], None]]:
        """Work that begins.

        Args:
            sentence: what it is.
            total: its size in bytes, about; None where it is not known.

        Returns:
            A context around the work, and in it a function that is told of every number of bytes done.
        """
        ...


class _Unwatched:
    def say(self, sentence: str) -> None:
        pass

    @contextmanager
    def bar(self, sentence: str, total: int | None) -> Iterator[Callable[[int], None]]:
        yield lambda amount: None


UNWATCHED: Progress = _Unwatched()
"""Nobody watches."""
