"""What every source of text has: its splits, and their text in pieces.

A piece that ends in a newline ends a *passage*, and that newline becomes the tokenizer's `eos`. Only a line too long to
hold in memory has more than one piece.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from equilibria.data.sources.reading import stable_fraction
from equilibria.data.tokenizer_training import TokenizerSpec

Split = Literal["train", "valid", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)


@dataclass(frozen=True, kw_only=True)
class Source(ABC):
    """Text in two or three splits, always with train and valid.

    Your own source is a frozen dataclass with `name`, `pieces`, `size` and `fingerprint`.

    Args:
        tokenizer: how the text becomes tokens.
        cache: folder for encoded text; relative paths are relative to the working directory.
    """

    tokenizer: TokenizerSpec = field(default_factory=TokenizerSpec)
    cache: Path = Path(".cache/equilibria")

    @property
    @abstractmethod
    def name(self) -> str:
        """A short name for messages and reports."""

    def splits(self) -> tuple[Split, ...]:
        """The splits that exist, in the order train, valid, test."""
        return SPLITS

    @abstractmethod
    def pieces(self, split: Split, as_bytes: bool = False) -> Iterator[str]:
        """Streams a split in the order of the text; a piece that ends in a newline ends a passage.

        Args:
            as_bytes: read an undivided file byte for byte (see `read_pieces`), for a tokenizer of bytes.

        Raises:
            UserError: the split does not exist, holds no text or cannot be read.
        """

    @abstractmethod
    def size(self, split: Split) -> int:
        """About how many bytes of text a split has, for progress; errors as for `pieces`."""

    @abstractmethod
    def fingerprint(self) -> str:
        """A hex digest of the content and its division."""

    def remark(self) -> str | None:
        """A sentence on an unexpected division into splits; raises a UserError if the text cannot be divided."""
        return None


def assigned(key: str, valid_fraction: float, test_fraction: float) -> Split:
    """The split that `key` always belongs to."""
    fraction = stable_fraction(key)
    if fraction < valid_fraction:
        return "valid"
    return "test" if fraction < valid_fraction + test_fraction else "train"
