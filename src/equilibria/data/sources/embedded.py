"""The English documentation every Python carries, as prose; sources are parsed, never imported."""

import ast
import gc
import re
import sysconfig
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

from equilibria.data.sources.base import Source, Split, assigned
from equilibria.data.sources.reading import file_digest, text_digest
from equilibria.errors import UserError

_NOT_DOCUMENTATION = frozenset({"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"})
_TOPICS = Path("pydoc_data", "topics.py")
_Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class EmbeddedText(Source):
    """The English documentation inside Python: its language reference's topics and its library's docstrings.

    A passage is a paragraph of prose. Whole topics and modules go to train, valid or test (about 90/5/5) by a stable
    hash of their name, and a repeated passage is kept once, so no passage is in two splits. The text differs a little
    between versions of Python.
    """

    @property
    def name(self) -> str:
        return "embedded"

    def pieces(self, split: Split, as_bytes: bool = False) -> Iterator[str]:
        for document in documents():
            if assigned(document.name, valid_fraction=0.05, test_fraction=0.05) == split:
                yield from (passage + "\n" for passage in document.passages)

    def size(self, split: Split) -> int:
        return sum(map(len, self.pieces(split)))

    def fingerprint(self) -> str:
        folder = _folder()
        return text_digest(
            part for path in _source_files() for part in (path.relative_to(folder).as_posix(), file_digest(path))
        )


class Document(NamedTuple):
    """The passages of one topic of the language reference or one module, in the order of the text."""

    name: str
    passages: tuple[str, ...]


@cache
def documents() -> tuple[Document, ...]:
    """All documents of the running Python, each passage only in the first; parsed, in seconds, once per process."""
    seen: set[str] = set()
    found = []
    with _garbage_collection_paused():
        for name, texts in _raw_documents():
            passages = dict.fromkeys(passage for text in texts for passage in _prose(text) if passage not in seen)
            seen.update(passages)
            if passages:
                found.append(Document(name, tuple(passages)))
    return tuple(found)


@contextmanager
def _garbage_collection_paused() -> Iterator[None]:
    # Syntax trees are many objects without cycles: looking for cycles doubles the time of parsing.
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _folder() -> Path:
    return Path(sysconfig.get_path("stdlib"))


def _source_files() -> list[Path]:
    folder = _folder()
    paths = sorted(
        path
        for path in folder.rglob("*.py")
        if _NOT_DOCUMENTATION.isdisjoint(path.relative_to(folder).parts[:-1]) and path.is_file()
    )
    if not paths:
        mend = "train on your own text (data.source 'folder' or 'files')"
        raise UserError(f"this Python has no standard library sources in {folder}; {mend}")
    return paths


def _raw_documents() -> Iterator[tuple[str, list[str]]]:
    """Name and texts of each topic of the language reference, then of each module."""
    folder, paths = _folder(), _source_files()
    if folder / _TOPICS in paths:
        for name, text in _topics(folder / _TOPICS).items():
            yield f"topic {name}", [text]
    for path in paths:
        if (tree := _parse(path)) is not None:
            docstrings = (ast.get_docstring(node) for node in _documented(tree))
            yield f"module {path.relative_to(folder).as_posix()}", [text for text in docstrings if text]


def _parse(path: Path) -> ast.Module | None:
    """The syntax tree of a file; None for the few deliberately broken ones."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):
            return None


def _topics(path: Path) -> dict[str, str]:
    tree = _parse(path)
    for statement in tree.body if tree else ():
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Dict):
            return ast.literal_eval(statement.value)
    return {}


def _documented(node: ast.AST) -> Iterator[_Documented]:
    """The nodes that can carry a docstring, in order, from bodies alone: all expressions would take several times as
    long."""
    if isinstance(node, _Documented):
        yield node
    for child in getattr(node, "body", ()):
        yield from _documented(child)


def _prose(text: str) -> Iterator[str]:
    """The paragraphs of `text` that read as English, each on one line: without interactive examples, titles' underlines
    and what is less than 85 % letters and spaces (code)."""
    for paragraph in re.split(r"\n\s*\n", text):
        lines = (line.strip() for line in paragraph.splitlines())
        passage = " ".join(" ".join(line for line in lines if any(map(str.isalnum, line))).split())
        letters = sum(character.isalpha() or character == " " for character in passage)
        if passage and ">>>" not in passage and letters >= 0.85 * len(passage):
            yield passage.encode("utf-8", "ignore").decode("utf-8")
