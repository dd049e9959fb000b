"""Which tokenizer a text is encoded with: one that is built from the text, or one that there is already."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from equilibria.data.reading import file_digest
from equilibria.data.tokenizers import BytePairTokenizer, ByteTokenizer, Tokenizer, WordTokenizer, load_tokenizer
from equilibria.errors import UserError

_MOST_TEXT = 256 << 20  # bytes of text that byte pairs are learned from: the distinct words in it are held in memory
_BLOCK = 1 << 20


@dataclass(frozen=True)
class TokenizerFile:
    """A tokenizer that there is already, in a file that `Tokenizer.save` wrote."""

    path: Path

    @property
    def kind(self) -> str:
        """As in a recipe."""
        return "file"

    def identity(self) -> dict[str, object]:
        """What two that are equal have in common: the content, not the path.

        Raises:
            UserError: the file cannot be read.
        """
        return {"kind": self.kind, "digest": file_digest(self.path)}


@dataclass(frozen=True)
class TokenizerSpec:
    """Which tokenizer to build.

    Args:
        kind: `"word"`, `"bpe"` or `"bytes"`.
        vocabulary_size: ids at most, special ones included. None: all words for `"word"`, 8000 for `"bpe"`.
        minimum_count: how often a word (a pair, for `"bpe"`) must be seen to be kept.

    Raises:
        UserError: a size or count that the kind cannot have.
    """

    kind: Literal["word", "bpe", "bytes"]
    vocabulary_size: int | None = None
    minimum_count: int = 1

    def __post_init__(self) -> None:
        smallest = {"word": 3, "bpe": 257, "bytes": 256}.get(self.kind)
        if smallest is None:
            raise UserError(f"no tokenizer is called {self.kind!r}; take 'word', 'bpe' or 'bytes'")
        if self.vocabulary_size is not None and self.vocabulary_size < smallest:
            raise UserError(
                f"vocabulary_size {self.vocabulary_size} is too small for {self.kind!r}; give {smallest} or more"
            )
        if self.kind == "bytes" and self.vocabulary_size not in (None, 256):
            raise UserError(f"the byte vocabulary has 256 ids, not {self.vocabulary_size}; leave vocabulary_size out")
        if self.minimum_count < 1:
            raise UserError(f"minimum_count is {self.minimum_count}; give 1 or more")

    def identity(self) -> dict[str, object]:
        """What two that are equal have in common."""
        return asdict(self)


def train_tokenizer(
    spec: TokenizerSpec | TokenizerFile, pieces: Iterable[str], size: int = 0, scratch: Path | None = None
) -> Tokenizer:
    """Builds the tokenizer of `spec` from text (the training split alone); bytes and a file need none.

    Words are counted exactly, in bounded memory. Byte pairs are learned from 256 MB of text at most: from a larger one
    every so many-th megabyte is taken.

    Args:
        spec: the kind and its sizes, or the file.
        pieces: the text.
        size: about how many bytes it has.
        scratch: folder for what does not fit into memory; None is that of temporary files.

    Raises:
        UserError: the file is missing or damaged.
    """
    if isinstance(spec, TokenizerFile):
        return load_tokenizer(spec.path)
    match spec.kind:
        case "word":
            return WordTokenizer.train(pieces, spec.vocabulary_size, spec.minimum_count, scratch)
        case "bpe":
            return BytePairTokenizer.train(_spread(pieces, size), spec.vocabulary_size, spec.minimum_count)
        case "bytes":
            return ByteTokenizer()


def _spread(pieces: Iterable[str], size: int) -> Iterator[str]:
    """All of a text, or blocks of it, evenly spread, that are `_MOST_TEXT` together."""
    every, position = max(1, -(-size // _MOST_TEXT)), 0
    for piece in pieces:
        if position // _BLOCK % every == 0:
            yield piece
        position += len(piece)
