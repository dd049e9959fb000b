"""Tokenizers learned from texts of any length, piece by piece as `Source.pieces` yields them, or read from files."""

import heapq
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from itertools import chain, groupby
from operator import itemgetter
from pathlib import Path
from threading import Thread
from typing import Literal, TextIO

from tokenizers import Tokenizer as StockTokenizer
from tokenizers import decoders, models, pre_tokenizers, trainers

from equilibria.data.sources.reading import file_digest
from equilibria.data.tokenizers import (
    END,
    UNKNOWN,
    Tokenizer,
    byte_pair_tokenizer,
    byte_tokenizer,
    load_tokenizer,
    word_tokenizer,
)
from equilibria.errors import UserError
from equilibria.ranges import whole

_DEFAULT_BYTE_PAIRS = 8000
_MOST_TEXT = 256 << 20  # bytes of text that byte pairs are learned from: the distinct words in it are held in memory
_BLOCK = 1 << 20
_MOST_WORDS = 1 << 20  # distinct words held in memory: about 150 MB
_LONGEST_WORD = 1000  # characters that byte pairs are learned from
_PART = re.compile(rf".{{1,{_LONGEST_WORD}}}(?=\s|\Z)|.{{1,{_LONGEST_WORD}}}", re.DOTALL)


@dataclass(frozen=True)
class TokenizerSpec:
    """The tokenizer to learn or to read.

    Args:
        kind: a token is a word, a byte-pair unit learned from the training text, a byte, or what a given file says.
        vocabulary_size: ids at most, special ones included; none: all words, or 8000 byte pairs.
        minimum_count: how often a word (a pair, for bpe) must be seen to be kept.
        path: the tokenizer.json of a run or an import, for kind "file".

    Raises:
        ValueError: a size, count or path that the kind cannot have.
    """

    kind: Literal["word", "bpe", "bytes", "file"] = "bpe"
    vocabulary_size: int | None = None
    minimum_count: int = 1
    path: Path | None = None

    def __post_init__(self) -> None:
        smallest = {"word": 3, "bpe": 257, "bytes": 256, "file": 1}.get(self.kind)
        if smallest is None:
            raise UserError(f"no tokenizer is called {self.kind!r}; take 'word', 'bpe', 'bytes' or 'file'")
        if (self.path is None) is (self.kind == "file"):
            mend = "give its path" if self.path is None else f'omit path, or take kind "file": {self.path}'
            raise UserError(f'kind "{self.kind}" {"needs a" if self.path is None else "takes no"} path; {mend}')
        if self.kind == "file" and (self.vocabulary_size is not None or self.minimum_count != 1):
            raise UserError("the vocabulary of a file is given; omit vocabulary_size and minimum_count")
        if self.vocabulary_size is not None and self.vocabulary_size < smallest:
            raise UserError(
                f"vocabulary_size {self.vocabulary_size} is too small for {self.kind!r}; give {smallest} or more"
            )
        if self.kind == "bytes" and self.vocabulary_size not in (None, 256):
            raise UserError(
                f"the byte vocabulary has 256 ids, not {self.vocabulary_size}; omit vocabulary_size (as a flag: "
                f"--unset data.tokenizer.vocabulary_size)"
            )
        whole(1, minimum_count=self.minimum_count)

    def identity(self) -> dict[str, object]:
        """What equal ones have in common; of a file the content, not the path. A UserError if it cannot be read."""
        if self.path is not None:
            return {"kind": self.kind, "digest": file_digest(self.path)}
        return {"kind": self.kind, "vocabulary_size": self.vocabulary_size, "minimum_count": self.minimum_count}


def train_tokenizer(
    spec: TokenizerSpec, pieces: Iterable[str], size: int = 0, scratch: Path | None = None
) -> Tokenizer:
    """Learns a tokenizer from text (the training split alone); bytes and a file need none.

    Words are counted exactly, in bounded memory. Byte pairs are learned from 256 MB of text at most: of a larger one,
    from blocks of 1 MB at equal distances.

    Args:
        size: about how many bytes the text has.
        scratch: folder for what does not fit into memory; None is that of temporary files.
    """
    match spec.kind:
        case "word":
            return train_words(pieces, spec.vocabulary_size, spec.minimum_count, scratch)
        case "bpe":
            return train_byte_pairs(_sampled(pieces, size), spec.vocabulary_size, spec.minimum_count)
        case "bytes":
            return byte_tokenizer()
        case "file":
            assert spec.path is not None  # checked
            return load_tokenizer(spec.path)


def train_words(
    pieces: Iterable[str], vocabulary_size: int | None, minimum_count: int, scratch: Path | None = None
) -> Tokenizer:
    """Words by falling frequency, ties in alphabetical order; `<unk>`, for all words dropped, and `<eos>` likewise.

    Args:
        vocabulary_size: words to keep at most, including `<unk>` and `<eos>`; None keeps all.
        minimum_count: words seen less often are dropped.
    """
    unknown = ends = 0
    with WordCounts(scratch) as counts:
        for piece in pieces:
            counts.update(piece.split())
            ends += piece.endswith("\n")

        def candidates() -> Iterator[tuple[int, str]]:
            nonlocal unknown, ends
            for word, count in counts.items():
                if word == END:
                    ends += count
                    continue
                unknown += count
                if word != UNKNOWN and count >= minimum_count:
                    yield -count, word

        frequent = (
            sorted(candidates()) if vocabulary_size is None else heapq.nsmallest(vocabulary_size - 2, candidates())
        )
    unknown += sum(count for count, _ in frequent)
    return word_tokenizer([word for _, word in sorted([*frequent, (-unknown, UNKNOWN), (-ends, END)])])


def train_byte_pairs(pieces: Iterable[str], vocabulary_size: int | None, minimum_count: int) -> Tokenizer:
    """Merges the most frequent pairs of bytes until the vocabulary is full or no pairs are left.

    Args:
        vocabulary_size: ids at most, including the 256 bytes and `eos`; None is 8000.
        minimum_count: pairs seen less often, or once, are not merged.
    """
    stock = StockTokenizer(models.BPE())
    stock.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    stock.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=(vocabulary_size or _DEFAULT_BYTE_PAIRS) - 1,
        min_frequency=max(2, minimum_count),
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    texts = chain.from_iterable(_bounded(piece.removesuffix("\n")) for piece in pieces)
    _call_interruptibly(lambda: stock.train_from_iterator(texts, trainer))
    return byte_pair_tokenizer(stock)


class WordCounts(AbstractContextManager["WordCounts"]):
    """How often each word occurs, exactly and in bounded memory: tables of more than `most_words` distinct words go to
    disk, sorted, and are merged at the end. Leaving the context removes the files."""

    def __init__(self, folder: Path | None = None, most_words: int = _MOST_WORDS) -> None:
        self._folder, self._most_words = folder, most_words
        self._counts: Counter[str] = Counter()
        self._runs: list[TextIO] = []
        self._files = ExitStack()

    def __exit__(self, *error: object) -> None:
        self._files.close()

    def update(self, words: Iterable[str]) -> None:
        """Counts words without white space."""
        self._counts.update(words)
        if len(self._counts) > self._most_words:
            self._runs.append(self._written())
            self._counts = Counter()

    def items(self) -> Iterator[tuple[str, int]]:
        """Every word once with its count, in any order."""
        if not self._runs:
            yield from self._counts.items()
            return
        runs = [*map(_read, self._runs), iter(sorted(self._counts.items()))]
        for word, same in groupby(heapq.merge(*runs), key=itemgetter(0)):
            yield word, sum(count for _, count in same)

    def _written(self) -> TextIO:
        # A temporary file without a name is gone when the process ends.
        run = tempfile.TemporaryFile("w+", encoding="utf-8", errors="surrogatepass", newline="\n", dir=self._folder)  # noqa: SIM115
        self._files.callback(run.close)
        run.writelines(f"{word} {count}\n" for word, count in sorted(self._counts.items()))
        return run


def _read(run: TextIO) -> Iterator[tuple[str, int]]:
    run.seek(0)
    for line in run:
        word, count = line.split(" ")
        yield word, int(count)


def _sampled(pieces: Iterable[str], size: int) -> Iterator[str]:
    """All of a text, or blocks of it at equal distances that are `_MOST_TEXT` together."""
    every, position = max(1, -(-size // _MOST_TEXT)), 0
    for piece in pieces:
        if position // _BLOCK % every == 0:
            yield piece
        position += len(piece)


def _bounded(piece: str) -> Iterator[str]:
    """A piece, or parts of a long one, cut before white space if possible: the time to learn byte pairs grows with the
    square of a word's length."""
    return iter([piece]) if len(piece) <= _LONGEST_WORD else (part.group() for part in _PART.finditer(piece))


def _call_interruptibly(call: Callable[[], object]) -> None:
    """Calls native code that ignores signals in a daemon thread, so that Ctrl-C ends the wait at once."""
    result: Future[object] = Future()

    def run() -> None:
        try:
            result.set_result(call())
        except BaseException as problem:
            result.set_exception(problem)

    Thread(target=run, daemon=True).start()
    result.result()
