"""Where text comes from: the documentation inside Python, a folder in the WikiText layout, or any text files.

A source yields *passages*; each passage ends in the tokenizer's `eos` once it is encoded.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, get_args

from equilibria.data import standard_library
from equilibria.data.reading import file_digest, read_lines, stable_fraction, text_digest
from equilibria.errors import UserError

Split = Literal["train", "valid", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)

_FOLDER_FILE = re.compile(r"(?:.+\.)?(train|valid|test)\.(?:txt|tokens|raw)(?:\.gz)?")


class Source(Protocol):
    """Text in two or three splits. Train and valid always exist."""

    @property
    def name(self) -> str:
        """A short name for messages and reports."""
        ...

    def splits(self) -> tuple[Split, ...]:
        """The splits that exist, in the order train, valid, test."""
        ...

    def passages(self, split: Split) -> Iterator[str]:
        """Streams the passages of a split, in the order of the text, without the ends of their lines.

        Raises:
            UserError: the split does not exist, holds no text or cannot be read.
        """
        ...

    def fingerprint(self) -> str:
        """A hex digest of the content and of how it is split."""
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

    def passages(self, split: Split) -> Iterator[str]:
        for document in standard_library.documents():
            if _assigned(document.name, valid_fraction=0.05, test_fraction=0.05) == split:
                yield from document.passages

    def fingerprint(self) -> str:
        return standard_library.fingerprint()


@dataclass(frozen=True)
class TextFolder:
    """A folder with one text file per split, in the layout of the WikiText releases.

    The files are `train.txt`, `valid.txt` and, if there is one, `test.txt`; each may carry a prefix
    (`wiki.train.txt`), end in `.tokens` or `.raw`, and be compressed (`.gz`). Every line is a passage, blank
    ones included: this is how WikiText's tokens are conventionally counted.

    Args:
        path: the folder.

    Raises:
        UserError: when used, where the folder or a file is missing, ambiguous, unreadable or without text.
    """

    path: Path

    @property
    def name(self) -> str:
        return self.path.resolve().name

    def splits(self) -> tuple[Split, ...]:
        return tuple(self._files("train", "valid"))

    def passages(self, split: Split) -> Iterator[str]:
        files = self._files(split) if split != "test" else self._files()
        if split not in files:
            raise UserError(f"{self.path} has no {split} file; add {split}.txt")
        blank = True
        for line in read_lines(files[split]):
            blank = blank and not line.strip()
            yield line
        if blank:
            raise UserError(f"{files[split]} holds no text; put the {split} text in it, one paragraph per line")

    def fingerprint(self) -> str:
        return text_digest(
            part for split, path in self._files("train", "valid").items() for part in (split, file_digest(path))
        )

    def _files(self, *needed: Split) -> dict[Split, Path]:
        """The file of each split that there is, those that are needed among them."""
        if not self.path.is_dir():
            found = "is a file" if self.path.exists() else "does not exist"
            raise UserError(f"{self.path} {found}; give a folder with train.txt and valid.txt")
        texts = [path for path in sorted(self.path.iterdir()) if _FOLDER_FILE.fullmatch(path.name)]
        files: dict[Split, Path] = {}
        for split in SPLITS:
            matching = [path for path in texts if (name := _FOLDER_FILE.fullmatch(path.name)) and name[1] == split]
            if len(matching) > 1:
                names = " and ".join(path.name for path in matching)
                raise UserError(f"{self.path} has {len(matching)} {split} files, {names}; leave only one")
            if matching:
                files[split] = matching[0]
            elif split in needed:
                found = ", ".join(path.name for path in texts) or "no text file of this layout"
                raise UserError(f"{self.path} has no {split}.txt or {split}.txt.gz (found: {found}); add it")
        return files


@dataclass(frozen=True)
class TextFiles:
    """Any text files (`.gz` too), split by a stable hash of each paragraph, so no passage is in two splits.

    A passage is a paragraph: the lines up to a blank one or, in a file without blank lines, each line.

    Args:
        paths: the files, in the order of the text.
        valid_fraction: share of the paragraphs held out for validation, above 0.
        test_fraction: share held out for the test; with 0 there is no test split.

    Raises:
        UserError: no file or an impossible fraction; when used, a file that is missing, unreadable or empty.
    """

    paths: tuple[Path, ...]
    valid_fraction: float = 0.05
    test_fraction: float = 0.05

    def __post_init__(self) -> None:
        if not self.paths:
            raise UserError("no text files given; data.files takes one path or more")
        if not (self.valid_fraction > 0 and self.test_fraction >= 0 and self._held_out() < 1):
            raise UserError(
                f"valid_fraction {self.valid_fraction} and test_fraction {self.test_fraction} leave an empty "
                "split; give fractions above 0 (test: or 0) whose sum is below 1"
            )

    @property
    def name(self) -> str:
        others = len(self.paths) - 1
        return self.paths[0].name + (f" and {others} more" if others else "")

    def splits(self) -> tuple[Split, ...]:
        return SPLITS if self.test_fraction else SPLITS[:2]

    def passages(self, split: Split) -> Iterator[str]:
        if split not in self.splits():
            raise UserError(f"{self.name} has no {split} split; give a test_fraction above 0")
        paragraphs = used = 0
        for path in self.paths:
            before = paragraphs
            for paragraph in _paragraphs(path):
                paragraphs += 1
                if _assigned(paragraph, self.valid_fraction, self.test_fraction) == split:
                    used += 1
                    yield paragraph
            if paragraphs == before:
                raise UserError(f"{path} holds no text; leave it out or give another file")
        if not used:
            raise UserError(
                f"{self.name}: none of {paragraphs} paragraphs fell into the {split} split; "
                "give more text or larger fractions"
            )

    def fingerprint(self) -> str:
        fractions = f"{self.valid_fraction!r} {self.test_fraction!r}"
        return text_digest([fractions, *(file_digest(path) for path in self.paths)])

    def _held_out(self) -> float:
        return self.valid_fraction + self.test_fraction


def _assigned(key: str, valid_fraction: float, test_fraction: float) -> Split:
    """The split that `key` always belongs to."""
    fraction = stable_fraction(key)
    if fraction < valid_fraction:
        return "valid"
    return "test" if fraction < valid_fraction + test_fraction else "train"


def _paragraphs(path: Path) -> Iterator[str]:
    line_by_line = not _has_blank_lines_between(path)
    paragraph: list[str] = []
    for line in read_lines(path):
        if line.strip():
            paragraph.append(line)
        if paragraph and (line_by_line or not line.strip()):
            yield "\n".join(paragraph)
            paragraph = []
    if paragraph:
        yield "\n".join(paragraph)


def _has_blank_lines_between(path: Path) -> bool:
    text = gap = False
    for line in read_lines(path):
        if not line.strip():
            gap = text
        elif gap:
            return True
        else:
            text = True
    return False
