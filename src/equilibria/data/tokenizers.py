"""Text to token ids and back: words, byte pairs, bytes, or the ids themselves written as numbers.

Every tokenizer of text has an `eos` id that ends a passage and that decodes to a newline. Texts of any length are
learned from and encoded piece by piece, a piece as `Source.pieces` yields them.
"""

import heapq
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, groupby, repeat
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import tokenizers as rust

from equilibria.data.counting import WordCounts
from equilibria.data.interruptible import call_interruptibly
from equilibria.errors import UserError
from equilibria.files.durable import write_durably
from equilibria.files.formats import read_json

UNKNOWN = "<unk>"
END = "<eos>"
_DEFAULT_BYTE_PAIRS = 8000
_LONGEST_WORD = 1000  # characters that byte pairs are learned from
_PART = re.compile(rf".{{1,{_LONGEST_WORD}}}(?=\s|\Z)|.{{1,{_LONGEST_WORD}}}", re.DOTALL)
_MOST_DIGITS = 20  # no vocabulary is that large, and Python reads no number of some thousand


class Tokenizer(Protocol):
    """A fixed map between text and ids in [0, vocabulary_size)."""

    @property
    def vocabulary_size(self) -> int:
        """How many ids there are, `eos` included."""
        ...

    @property
    def eos(self) -> int:
        """The id that ends a passage."""
        ...

    def encode(self, text: str) -> list[int]:
        """The ids of `text`, without an `eos` of their own; of words, byte pairs and bytes each newline is one."""
        ...

    def encode_pieces(self, pieces: Sequence[str]) -> np.ndarray:
        """The ids (N,) of pieces of a text one after another; the newline that ends a piece becomes `eos`."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, each `eos` a newline.

        Raises:
            UserError: an id is outside the vocabulary.
        """
        ...

    def save(self, path: Path) -> None:
        """Writes one JSON file that `load_tokenizer` reads back."""
        ...


class WordTokenizer:
    """Whitespace-separated words; a word outside the vocabulary becomes `<unk>`.

    Decoding joins words by single spaces, so other white space is lost.

    Args:
        words: the vocabulary, a word's place its id; contains `<eos>`, and `<unk>` where words may be outside it.

    Raises:
        UserError: a word appears twice, or `<eos>` is missing.
    """

    def __init__(self, words: Sequence[str]) -> None:
        self.words = tuple(words)
        self._ids = {word: index for index, word in enumerate(self.words)}
        if len(self._ids) < len(self.words):
            word, count = Counter(self.words).most_common(1)[0]
            raise UserError(f"the vocabulary lists {word!r} {count} times; a word may appear once")
        if END not in self._ids:
            raise UserError(f"the vocabulary lacks {END}; train the tokenizer again")

    @classmethod
    def train(
        cls, pieces: Iterable[str], vocabulary_size: int | None, minimum_count: int, scratch: Path | None = None
    ) -> "WordTokenizer":
        """Builds the vocabulary from text: most frequent first, ties in alphabetical order.

        `<unk>` stands where its own count, that of all words left out, puts it; `<eos>` likewise.

        Args:
            pieces: the text.
            vocabulary_size: how many words to keep at most, `<unk>` and `<eos>` included; None keeps all.
            minimum_count: words seen less often are left out.
            scratch: folder for what does not fit into memory; None is that of temporary files.
        """
        unknown = ends = 0
        frequent: list[tuple[int, str]] = []
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
        return cls([word for _, word in sorted([*frequent, (-unknown, UNKNOWN), (-ends, END)])])

    @property
    def vocabulary_size(self) -> int:
        return len(self.words)

    @property
    def eos(self) -> int:
        return self._ids[END]

    @property
    def unknown(self) -> int | None:
        """The id of `<unk>`; None where there is no such word."""
        return self._ids.get(UNKNOWN)

    def encode(self, text: str) -> list[int]:
        """Raises UserError for a word outside a vocabulary without `<unk>`."""
        return _by_lines(text, self._line, self.eos)

    def _line(self, line: str) -> list[int]:
        if self.unknown is not None:
            return list(map(self._ids.get, line.split(), repeat(self.unknown)))
        try:
            return [self._ids[word] for word in line.split()]
        except KeyError as outside:
            raise UserError(f"{outside} is not in the vocabulary, which has no {UNKNOWN} to stand for it") from outside

    def encode_pieces(self, pieces: Sequence[str]) -> np.ndarray:
        if self.unknown is None:
            return _one_by_one(self, pieces)
        words = (piece.split() + [END] * piece.endswith("\n") for piece in pieces)
        ids = map(self._ids.get, chain.from_iterable(words), repeat(self.unknown))
        return np.fromiter(ids, np.int32)

    def decode(self, ids: Sequence[int]) -> str:
        _check_ids(ids, self.vocabulary_size)
        words = ("\n" if index == self.eos else self.words[index] for index in ids)
        return " ".join(words).replace(" \n", "\n").replace("\n ", "\n")

    def save(self, path: Path) -> None:
        _save_json(path, {"kind": "word", "words": self.words})


class BytePairTokenizer:
    """Byte-level byte-pair encoding: any text encodes, and decodes to exactly itself.

    Nothing but a newline maps to `eos`, which is the last id: a passage may contain the characters `<eos>`.

    Args:
        inner: a byte-level tokenizer of the `tokenizers` package.
    """

    def __init__(self, inner: rust.Tokenizer) -> None:
        self._inner = inner
        self._merged = inner.get_vocab_size()

    @classmethod
    def train(cls, pieces: Iterable[str], vocabulary_size: int | None, minimum_count: int) -> "BytePairTokenizer":
        """Merges the most frequent pairs until the vocabulary is full or the pairs are used up.

        Args:
            pieces: the text.
            vocabulary_size: the most ids wanted, the 256 bytes and `eos` included; None is 8000.
            minimum_count: pairs seen less often are not merged, nor are pairs seen once.
        """
        inner = rust.Tokenizer(rust.models.BPE())
        inner.pre_tokenizer = rust.pre_tokenizers.ByteLevel(add_prefix_space=False)
        inner.decoder = rust.decoders.ByteLevel()
        trainer = rust.trainers.BpeTrainer(
            vocab_size=(vocabulary_size or _DEFAULT_BYTE_PAIRS) - 1,
            min_frequency=max(2, minimum_count),
            show_progress=False,
            initial_alphabet=rust.pre_tokenizers.ByteLevel.alphabet(),
        )
        texts = chain.from_iterable(_within_reach(piece.removesuffix("\n")) for piece in pieces)
        call_interruptibly(lambda: inner.train_from_iterator(texts, trainer))
        return cls(inner)

    @property
    def inner(self) -> rust.Tokenizer:
        """That of the `tokenizers` package, which knows nothing of `eos`."""
        return self._inner

    @property
    def vocabulary_size(self) -> int:
        return self._merged + 1

    @property
    def eos(self) -> int:
        return self._merged

    def encode(self, text: str) -> list[int]:
        return _by_lines(text, lambda line: self._inner.encode(line).ids, self.eos)

    def encode_pieces(self, pieces: Sequence[str]) -> np.ndarray:
        encoded = self._inner.encode_batch_fast([piece.removesuffix("\n") for piece in pieces])
        ends = ([self.eos] * piece.endswith("\n") for piece in pieces)
        ids = chain.from_iterable(encoding.ids + end for encoding, end in zip(encoded, ends, strict=True))
        return np.fromiter(ids, np.int32)

    def decode(self, ids: Sequence[int]) -> str:
        _check_ids(ids, self.vocabulary_size)
        runs = groupby(ids, key=lambda index: index == self.eos)
        return "".join("\n" * len(list(run)) if end else self._inner.decode(list(run)) for end, run in runs)

    def save(self, path: Path) -> None:
        _save_json(path, {"kind": "bpe", "tokenizer": json.loads(self._inner.to_str())})


class ByteTokenizer:
    """The 256 bytes of UTF-8; the newline byte ends a passage."""

    @property
    def vocabulary_size(self) -> int:
        return 256

    @property
    def eos(self) -> int:
        return 10

    def encode(self, text: str) -> list[int]:
        return list(utf_8(text))

    def encode_pieces(self, pieces: Sequence[str]) -> np.ndarray:
        return np.frombuffer(utf_8("".join(pieces)), np.uint8)

    def decode(self, ids: Sequence[int]) -> str:
        _check_ids(ids, self.vocabulary_size)
        return bytes(ids).decode("utf-8", "replace")

    def save(self, path: Path) -> None:
        _save_json(path, {"kind": "bytes"})


class DigitTokenizer:
    """The ten digits, for tasks whose tokens are classes; 0, the blank, ends a passage and stays a digit."""

    @property
    def vocabulary_size(self) -> int:
        return 10

    @property
    def eos(self) -> int:
        return 0

    def encode(self, text: str) -> list[int]:
        """Raises UserError for anything but digits and white space."""
        digits = "".join(text.split())
        if digits.strip("0123456789"):
            raise UserError(f"{text!r} is not a sequence of digits, which are all that this task knows")
        return [int(digit) for digit in digits]

    def encode_pieces(self, pieces: Sequence[str]) -> np.ndarray:
        return _one_by_one(self, pieces)

    def decode(self, ids: Sequence[int]) -> str:
        _check_ids(ids, self.vocabulary_size)
        return "".join(map(str, ids))

    def save(self, path: Path) -> None:
        _save_json(path, {"kind": "digits"})


class IdTokenizer:
    """Token ids themselves, written as decimal numbers between white space; 0 ends a passage and stays a number.

    Args:
        vocabulary_size: how many ids there are.
    """

    def __init__(self, vocabulary_size: int) -> None:
        if vocabulary_size < 1:
            raise UserError(f"a vocabulary of {vocabulary_size} ids holds nothing; give 1 or more")
        self._size = vocabulary_size

    @property
    def vocabulary_size(self) -> int:
        return self._size

    @property
    def eos(self) -> int:
        return 0

    def encode(self, text: str) -> list[int]:
        """Raises UserError for anything but numbers and white space, and for an id outside the vocabulary."""
        for word in text.split():
            if not (word.isascii() and word.isdecimal() and len(word.lstrip("0")) < _MOST_DIGITS):
                raise UserError(
                    f"{word[:40]!r} is not a token id; this model's text is numbers with spaces between them"
                )
        ids = [int(word.lstrip("0") or "0") for word in text.split()]
        _check_ids(ids, self._size)
        return ids

    def encode_pieces(self, pieces: Sequence[str]) -> np.ndarray:
        return _one_by_one(self, pieces)

    def decode(self, ids: Sequence[int]) -> str:
        _check_ids(ids, self._size)
        return " ".join(map(str, ids))

    def save(self, path: Path) -> None:
        _save_json(path, {"kind": "ids", "vocabulary_size": self._size})


def utf_8(text: str) -> bytes:
    """The bytes of a text, those among them that are not UTF-8 as they were read (`surrogateescape`)."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace")


def load_tokenizer(path: Path) -> Tokenizer:
    """Reads what `Tokenizer.save` wrote.

    Raises:
        UserError: the file is missing, damaged or not of this format.
    """
    content = read_json(path, dict, "prepare the text again")
    try:
        return _from_json(content)
    except Exception as error:  # the tokenizers package raises bare Exception
        raise UserError(f"{path} is not a tokenizer of equilibria ({error}); prepare the text again") from error


def stock_from(content: Mapping[str, Any]) -> rust.Tokenizer:
    """The tokenizer of the tokenizers package that a `tokenizer.json` of its own describes.

    Raises:
        Exception: it describes none; the package raises no other class.
    """
    try:
        return rust.Tokenizer.from_str(json.dumps(content))
    except BaseException as problem:
        if type(problem).__name__ != "PanicException":  # of Rust, which is no Exception
            raise
        raise ValueError(str(problem)) from problem


def _from_json(content: Any) -> Tokenizer:
    match content:
        case {"kind": "word", "words": [*words]} if all(isinstance(word, str) for word in words):
            return WordTokenizer(words)
        case {"kind": "bpe", "tokenizer": dict(inner)}:
            return BytePairTokenizer(stock_from(inner))
        case {"kind": "bytes"}:
            return ByteTokenizer()
        case {"kind": "digits"}:
            return DigitTokenizer()
        case {"kind": "ids", "vocabulary_size": int(size)}:
            return IdTokenizer(size)
    raise UserError("no known kind with its vocabulary inside")


def _by_lines(text: str, encode: Callable[[str], list[int]], eos: int) -> list[int]:
    """The ids of lines, `eos` between them: as of the pieces that a model is trained on."""
    first, *others = map(encode, text.split("\n"))
    return [*first, *chain.from_iterable([eos, *ids] for ids in others)]


def _within_reach(piece: str) -> Iterator[str]:
    """A piece, or parts of a long one, cut before white space where there is some: the time that byte pairs take to be
    learned grows with the square of a word's length."""
    if len(piece) <= _LONGEST_WORD:
        yield piece
    else:
        yield from (part.group() for part in _PART.finditer(piece))


def _one_by_one(tokenizer: Tokenizer, pieces: Sequence[str]) -> np.ndarray:
    ids = (tokenizer.encode(piece.removesuffix("\n")) + [tokenizer.eos] * piece.endswith("\n") for piece in pieces)
    return np.fromiter(chain.from_iterable(ids), np.int32)


def _save_json(path: Path, content: dict[str, Any]) -> None:
    write_durably(path, json.dumps(content, ensure_ascii=False))


def _check_ids(ids: Iterable[int], vocabulary_size: int) -> None:
    outside: Iterator[int] = (index for index in ids if not 0 <= index < vocabulary_size)
    if (index := next(outside, None)) is not None:
        raise UserError(f"token id {index} is outside the vocabulary of {vocabulary_size}; use its own tokenizer")
