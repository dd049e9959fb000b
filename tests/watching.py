"""Someone who watches long work and remembers what was told."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Watcher:
    """Sentences in `said`; of each piece of work its sentence, its total and what was done of it in `bars`."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.bars: list[tuple[str, int | None, list[int]]] = []

    def say(self, sentence: str) -> None:
        self.said.append(sentence)

    @contextmanager
    def bar(self, sentence: str, total: int | None, unit: str = "bytes") -> Iterator[Callable[[int], None]]:
        del unit
        done: list[int] = []
        self.bars.append((sentence, total, done))
        yield done.append
