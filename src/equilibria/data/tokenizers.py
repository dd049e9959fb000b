"""Text to token ids and back: words, byte pairs, bytes or numbers, in the format of the `tokenizers` library.

What `Tokenizer.save` writes loads in `tokenizers.Tokenizer.from_file` and in transformers' `PreTrainedTokenizerFast`.
"""

import json
import pickle
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as StockTokenizer

from equilibria.errors import UserError
from equilibria.files.durable import write_durably
from equilibria.files.formats import read_json

UNKNOWN = "<unk>"
END = "<eos>"
_WHITE_SPACE = r"\s\x1c-\x1f\x85"  # what str.split splits at


class Tokenizer:
    """A fixed map between text and ids in [0, vocabulary_size).

    Words and bytes are encoded and decoded without the library, which gives the same and takes 7 and 100 times as long.

    Args:
        stock: a tokenizer of the `tokenizers` library, used without truncation and padding. A passage ends with its
            special token `"\\n"`, or `"0"` where tokens are numbers, or `"<eos>"` where they are words.

    Attributes:
        vocabulary_size: how many ids there are, including `eos`.
        eos: the id that ends a passage: a newline, except in texts of numbers.
        unknown: the id of words outside the vocabulary; None if it has none.
        is_bytes: whether each token is a byte, so that text need not be UTF-8.

    Raises:
        UserError: no such token, or ids with gaps.
    """

    def __init__(self, stock: StockTokenizer) -> None:
        stock.no_truncation()
        stock.no_padding()
        ids, self.stock = stock.get_vocab(), stock
        added = stock.get_added_tokens_decoder().values()
        # Among words it is not special: the library would find it in "<eos>:" too.
        ends = {token.content for token in added if token.special} | ({END} if _has_words(stock) else set())
        end = next((name for name in ("\n", END, "0") if name in ends and name in ids), None)
        if end is None:
            raise UserError(f"it has no special token '\\n' or '0' and no word {END!r} to end a passage")
        if set(ids.values()) != set(range(len(ids))):
            raise UserError(f"the ids of its {len(ids)} tokens are not 0 to {len(ids) - 1}")
        self.vocabulary_size, self.eos = len(ids), ids[end]
        self.unknown = ids.get(UNKNOWN) if end == END else None
        self.is_bytes = len(ids) == 256 and stock.to_str() == _bytes().to_str()
        self._words: Mapping[str, int] | None = None
        if not added and _pipeline(stock) == _pipeline(_words({})):
            # Rebuilt in the order of the ids, with frequent words close together in memory: a third faster.
            words = [stock.id_to_token(index) or "" for index in range(len(ids))]
            self._words = {word: index for index, word in enumerate(words)}
            self._texts = ["\n" if word == END else word for word in words]

    def encode(self, text: str) -> list[int]:
        """The ids of a text; unless it is of numbers, each newline is an `eos`, and none is added at the end. Raises a
        UserError for a word outside a vocabulary without `<unk>`."""
        return self.encode_pieces([text]).tolist()

    def encode_pieces(self, pieces: Sequence[str]) -> np.ndarray:
        """The ids (N,) of pieces of a text, one after another, as `encode` of each."""
        if self.is_bytes:
            return np.frombuffer(utf_8("".join(pieces)), np.uint8)
        if self._words is not None:
            words = chain.from_iterable(piece.replace("\n", f" {END} ").split() for piece in pieces)
            if self.unknown is not None:
                return np.fromiter(map(self._words.get, words, repeat(self.unknown)), np.int32)
            try:
                return np.fromiter(map(self._words.__getitem__, words), np.int32)
            except KeyError as word:
                raise self._outside(word.args[0]) from word
        try:
            encoded = self.stock.encode_batch_fast(list(pieces), add_special_tokens=False)
        except Exception as problem:  # the library raises bare Exception
            raise self._outside("".join(pieces)) from problem
        return np.fromiter(chain.from_iterable(encoding.ids for encoding in encoded), np.int32)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, each `eos` a newline (0, where tokens are numbers), words joined by single spaces.

        Raises a UserError for an id outside the vocabulary.
        """
        if self.is_bytes:
            with suppress(ValueError):  # an id that is not a byte, named below
                return bytes(ids).decode("utf-8", "replace")
        if len(ids) and not 0 <= min(ids) <= max(ids) < self.vocabulary_size:
            index = next(index for index in ids if not 0 <= index < self.vocabulary_size)
            raise UserError(
                f"token id {index} is outside the vocabulary of {self.vocabulary_size}; use the tokenizer it is from"
            )
        if self._words is not None:
            return " ".join(map(self._texts.__getitem__, ids)).replace(" \n", "\n").replace("\n ", "\n")
        return self.stock.decode(list(ids), skip_special_tokens=False)

    def save(self, path: Path) -> None:
        """Writes a `tokenizer.json`, for `load_tokenizer` and other libraries."""
        write_durably(path, self.stock.to_str())

    def _outside(self, text: str) -> UserError:
        first = ", ".join(repr(self.stock.id_to_token(index)) for index in range(min(3, self.vocabulary_size)))
        return UserError(
            f"{text[:40]!r} has a word outside the vocabulary of {self.vocabulary_size} ({first}, …), which has no "
            f"{UNKNOWN} for it"
        )


def word_tokenizer(words: Sequence[str]) -> Tokenizer:
    """Words between white space; one outside the vocabulary becomes `<unk>`, if that is in it.

    Args:
        words: the vocabulary in the order of the ids, with `<eos>`.

    Raises:
        UserError: a word appears twice, or `<eos>` is missing.
    """
    counts = Counter(words)
    if END not in counts:
        raise UserError(f"the vocabulary lacks {END}")
    word, count = counts.most_common(1)[0]
    if count > 1:
        raise UserError(f"the vocabulary lists {word!r} {count} times; a word may appear once")
    return Tokenizer(_words({word: index for index, word in enumerate(words)}))


def byte_pair_tokenizer(merges: StockTokenizer) -> Tokenizer:
    """Byte-level byte pairs, by a tokenizer of the library without `eos`: the newline becomes that, and the last id."""
    return Tokenizer(_ended(merges, "\n"))


def byte_tokenizer() -> Tokenizer:
    """The 256 bytes of UTF-8; the newline's, 10, is `eos`."""
    return Tokenizer(_bytes())


def digit_tokenizer(size: int = 10) -> Tokenizer:
    """The first digits, for tasks whose tokens are classes; 0, the blank, is `eos`. White space is dropped."""
    stock = _numbers(size)
    stock.pre_tokenizer = pre_tokenizers.Sequence([_split(), pre_tokenizers.Split(Regex("."), "isolated")])
    stock.decoder = decoders.Fuse()
    return Tokenizer(_ended(stock, "0"))


def id_tokenizer(vocabulary_size: int) -> Tokenizer:
    """Token ids themselves, written as decimal numbers between white space; 0 is `eos`."""
    if vocabulary_size < 1:
        raise UserError(f"a vocabulary of {vocabulary_size} ids holds nothing; give 1 or more")
    stock = _numbers(vocabulary_size)
    stock.normalizer = normalizers.Replace(Regex(rf"(?<![^{_WHITE_SPACE}])0+(?=[0-9])"), "")  # leading zeros
    stock.pre_tokenizer = _split()
    stock.decoder = _joined()
    return Tokenizer(_ended(stock, "0", single_word=True))


def load_tokenizer(path: Path) -> Tokenizer:
    """Reads a `tokenizer.json`; raises a UserError if it is missing, damaged or not for `Tokenizer`."""
    content = read_json(path, dict, "if it is a tokenizer.json, prepare the text again")
    try:
        return Tokenizer(stock_from(content))
    except Exception as error:  # the library raises bare Exception
        raise UserError(f"{path} is not a tokenizer that works here ({error}); prepare the text again") from error


def stock_from(content: Mapping[str, Any]) -> StockTokenizer:
    """The library's tokenizer for the content of a `tokenizer.json`; raises a bare Exception, as the library does."""
    try:
        return StockTokenizer.from_str(json.dumps(content))
    except BaseException as problem:
        if type(problem).__name__ != "PanicException":  # of Rust, which is not an Exception
            raise
        raise ValueError(str(problem)) from problem


def utf_8(text: str) -> bytes:
    """The bytes of a text; those that are not UTF-8 as they were read (`surrogateescape`)."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace")


def _words(vocabulary: dict[str, int]) -> StockTokenizer:
    """Words between white space; a newline is the word `<eos>`, and becomes one again."""
    stock = StockTokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    stock.normalizer = normalizers.Replace("\n", f" {END} ")
    stock.pre_tokenizer = _split()
    newlines = decoders.Replace(" \n", "\n"), decoders.Replace("\n ", "\n")
    stock.decoder = decoders.Sequence([decoders.Replace(Regex(f"^{END}$"), "\n"), _joined(), *newlines])
    return stock


def _bytes() -> StockTokenizer:
    """GPT-2's letters for bytes, numbered by their bytes: a visible byte is itself, others are letters from 256 on."""
    visible = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = iter(range(256, 512))
    letters = [chr(byte if byte in visible else next(others)) for byte in range(256)]
    letters[ord("\n")] = "\n"
    stock = StockTokenizer(models.BPE({letter: byte for byte, letter in enumerate(letters)}, []))
    stock.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    stock.decoder = decoders.ByteLevel()
    return _ended(stock, "\n")


def _numbers(size: int) -> StockTokenizer:
    return StockTokenizer(models.WordLevel({str(number): number for number in range(size)}, unk_token=UNKNOWN))


def _ended(stock: StockTokenizer, end: str, single_word: bool = False) -> StockTokenizer:
    """Adds the special token that ends a passage; a single word is looked for in normalized text."""
    stock.add_special_tokens([AddedToken(end, single_word=single_word, normalized=single_word, special=True)])
    return stock


def _split() -> pre_tokenizers.Split:
    return pre_tokenizers.Split(Regex(f"[{_WHITE_SPACE}]+"), "removed")


def _joined() -> decoders.Sequence:
    """Joins by single spaces."""
    return decoders.Sequence([decoders.WordPiece(prefix=" ", cleanup=False), decoders.Fuse()])


def _has_words(stock: StockTokenizer) -> bool:
    return isinstance(stock.model, models.WordLevel)


def _pipeline(stock: StockTokenizer) -> bytes:
    """All but the vocabulary."""
    unknown = stock.model.unk_token if _has_words(stock) else None  # pyright: ignore[reportAttributeAccessIssue]
    return pickle.dumps((unknown, stock.normalizer, stock.pre_tokenizer, stock.post_processor, stock.decoder))
