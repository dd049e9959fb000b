"""Where text comes from: the documentation inside Python, or a folder in the WikiText layout.

A source yields its text in *pieces*. A piece that ends in a newline ends a *passage*, and that newline becomes the
tokenizer's `eos`. Only a line that is too long to hold in memory has more than one piece.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, get_args

from equilibria.data import standard_library
from equilibria.data.reading import file_digest, read_pieces, stable_fraction, text_digest, text_size
from equilibria.errors import UserError
from equilibria.files.manifest import MANIFEST, check_manifest, read_manifest

Split = Literal["train", "valid", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)

_FOLDER_FILE = re.compile(r"(?:.+\.)?(train|val|valid|validation|test)\.(?:txt|tokens|raw)(?:\.gz)?")
_OTHER_NAMES = {"val": "valid", "validation": "valid"}


def split_of(file_name: str) -> Split | None:
    """The split that a file of a folder in the WikiText layout holds; None where its name is of no split."""
    match = _FOLDER_FILE.fullmatch(file_name)
    name = match and _OTHER_NAMES.get(match[1], match[1])
    return next((split for split in SPLITS if split == name), None)


class Source(Protocol):
    """Text in two or three splits. Train and valid always exist."""

    @property
    def name(self) -> str:
        """A short name for messages and reports."""
        ...

    def splits(self) -> tuple[Split, ...]:
        """The splits that exist, in the order train, valid, test."""
        ...

    def pieces(self, split: Split) -> Iterator[str]:
        """Streams a split in the order of the text; a piece that ends in a newline ends a passage.

        Raises:
            UserError: the split does not exist, holds no text or cannot be read.
        """
        ...

    def size(self, split: Split) -> int:
        """About how many bytes of text a split has: what progress is measured by.

        Raises:
            UserError: the split does not exist or cannot be read.
        """
        ...

    def fingerprint(self) -> str:
        """A hex digest of the content and of how it is split."""
        ...

    def remark(self) -> str | None:
        """A sentence on how the text is split where that is not what one would expect.

        Raises:
            UserError: the text cannot be read or split.
        """
        ...


@dataclass(frozen=True)
class EmbeddedText:
    """The English documentation inside Python: its language reference's topics and its library's docstrings.

    A passage is a paragraph of prose. Whole topics and modules go to train, valid or test (about 90/5/5) by a
    stable hash of their name, and a repeated passage is kept once, so no passage is in two splits. The text
    differs a little between versions of Python.
    """

    @property
    def name(self) -> str:
        return "embedded"

    def splits(self) -> tuple[Split, ...]:
        return SPLITS

    def pieces(self, split: Split) -> Iterator[str]:
        for document in standard_library.documents():
            if assigned(document.name, valid_fraction=0.05, test_fraction=0.05) == split:
                yield from (passage + "\n" for passage in document.passages)

    def size(self, split: Split) -> int:
        return sum(map(len, self.pieces(split)))

    def fingerprint(self) -> str:
        return standard_library.fingerprint()

    def remark(self) -> None:
        return None


@dataclass(frozen=True)
class TextFolder:
    """A folder with one text file per split, in the layout of the WikiText releases.

    The files are `train.txt`, `valid.txt` (or `val.txt`, `validation.txt`) and, if there is one, `test.txt`; each may
    carry a prefix (`wiki.train.txt`), end in `.tokens` or `.raw`, and be compressed (`.gz`). Every line is a passage,
    blank ones included: this is how WikiText's tokens are conventionally counted.

    Args:
        path: the folder.
        as_bytes: read files byte for byte, for a tokenizer whose tokens are bytes: they need not be UTF-8, line ends
            stay what they are, and a last line without an end gets none.

    Raises:
        UserError: when used, where the folder or a file is missing, ambiguous, unreadable or without text.
    """

    path: Path
    as_bytes: bool = False

    @property
    def name(self) -> str:
        return self.path.resolve().name

    def splits(self) -> tuple[Split, ...]:
        return tuple(self._files("train", "valid"))

    def pieces(self, split: Split) -> Iterator[str]:
        path = self._file(split)
        blank = True
        for piece in read_pieces(path, self.as_bytes):
            blank = blank and not piece.strip()
            yield piece
        if blank:
            raise UserError(f"{path} holds no text; put the {split} text in it, one paragraph per line")

    def size(self, split: Split) -> int:
        return text_size(self._file(split))

    def fingerprint(self) -> str:
        self._check_fetched()
        return text_digest(
            part for split, path in self._files("train", "valid").items() for part in (split, file_digest(path))
        )

    def remark(self) -> None:
        return None

    def _check_fetched(self) -> None:
        """Checks a text that `equilibria data` has fetched by its manifest."""
        try:
            read_manifest(self.path)
        except UserError:
            return  # a folder of somebody's own
        try:
            check_manifest(self.path)
        except UserError as problem:
            raise UserError(
                f"{problem}; fetch it again, or remove {self.path / MANIFEST} to take the text as it is"
            ) from problem

    def _file(self, split: Split) -> Path:
        files = self._files(split) if split != "test" else self._files()
        if split not in files:
            raise UserError(f"{self.path} has no {split} file; add {split}.txt")
        return files[split]

    def _files(self, *needed: Split) -> dict[Split, Path]:
        """The file of each split that there is, those that are needed among them."""
        if not self.path.is_dir():
            found = "is a file" if self.path.exists() else "does not exist"
            raise UserError(
                f"{self.path} {found}; give a folder with train.txt and valid.txt, such as `equilibria data NAME` makes"
            )
        texts = [path for path in sorted(self.path.iterdir()) if split_of(path.name)]
        files: dict[Split, Path] = {}
        for split in SPLITS:
            matching = [path for path in texts if split_of(path.name) == split]
            if len(matching) > 1:
                names = " and ".join(path.name for path in matching)
                raise UserError(f"{self.path} has {len(matching)} {split} files, {names}; leave only one")
            if matching:
                files[split] = matching[0]
            elif split in needed:
                found = ", ".join(path.name for path in texts) or "no text file of this layout"
                raise UserError(f"{self.path} has no {split}.txt or {split}.txt.gz (found: {found}); add it")
        return files


def assigned(key: str, valid_fraction: float, test_fraction: float) -> Split:
    """The split that `key` always belongs to."""
    fraction = stable_fraction(key)
    if fraction < valid_fraction:
        return "valid"
    return "test" if fraction < valid_fraction + test_fraction else "train"
