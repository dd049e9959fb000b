"""Counting words exactly in bounded memory: tables that grow too large go to disk sorted, and are merged at the end."""

import heapq
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import TextIO

_MOST_WORDS = 1 << 20  # distinct words held in memory: about 150 MB


class WordCounts(AbstractContextManager["WordCounts"]):
    """How often each word occurs, however many distinct words there are; a context, whose end removes its files.

    Args:
        folder: where tables that grow too large are written; None is the folder of temporary files.
        most_words: distinct words held in memory.
    """

    def __init__(self, folder: Path | None = None, most_words: int = _MOST_WORDS) -> None:
        self._folder = folder
        self._most_words = most_words
        self._counts: Counter[str] = Counter()
        self._runs: list[TextIO] = []
        self._files = ExitStack()

    def __exit__(self, *error: object) -> None:
        self._files.close()

    def update(self, words: Iterable[str]) -> None:
        """Counts words, none of which may contain white space."""
        self._counts.update(words)
        if len(self._counts) > self._most_words:
            self._runs.append(self._written())
            self._counts = Counter()

    def items(self) -> Iterator[tuple[str, int]]:
        """Every word once with its count; in no order that matters."""
        if not self._runs:
            yield from self._counts.items()
            return
        runs = [*map(_read, self._runs), iter(sorted(self._counts.items()))]
        for word, same in groupby(heapq.merge(*runs), key=itemgetter(0)):
            yield word, sum(count for _, count in same)

    def _written(self) -> TextIO:
        # A temporary file without a name: it goes with the process, however that ends.
        run = tempfile.TemporaryFile("w+", encoding="utf-8", errors="surrogatepass", newline="\n", dir=self._folder)  # noqa: SIM115
        self._files.callback(run.close)
        run.writelines(f"{word} {count}\n" for word, count in sorted(self._counts.items()))
        return run


def _read(run: TextIO) -> Iterator[tuple[str, int]]:
    run.seek(0)
    for line in run:
        word, count = line.split(" ")
        yield word, int(count)
