"""Extraction from a small library of known content; the real one is tried in test_folder.py."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from equilibria.data.sources import embedded
from equilibria.errors import UserError

TOPICS = """
topics = {
 'assert': 'The statement\\n*************\\n\\nAssert statements insert\\nassertions into a program.\\n',
 'repeated': 'This passage is repeated elsewhere.',
}
"""
MODULE = '''"""A module about things.

This passage is repeated
elsewhere.

    >>> f(1)
    2

    >>> import nothing that reads like English

x = {1: 2}; y[3:4] += z**5 % 6
"""
raise ImportError("parsed, never imported")

class A:
    """Class docstring comes first."""
    def method(self):
        """Then that of its method."""
        text = """Not a docstring."""

async def last():
    """A lone surrogate \\ud800 cannot be encoded."""
'''


@pytest.fixture(autouse=True)
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "pydoc_data").mkdir()
    (tmp_path / "pydoc_data" / "topics.py").write_text(TOPICS)
    (tmp_path / "things.py").write_text(MODULE)
    (tmp_path / "broken.py").write_text("print 'two'")
    for folder in ("site-packages", "test"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "other.py").write_text('"""Text that does not belong here."""')
    monkeypatch.setattr(embedded.sysconfig, "get_path", lambda name: str(tmp_path))
    embedded.documents.cache_clear()
    yield tmp_path
    embedded.documents.cache_clear()


def test_documents_are_paragraphs_of_prose_each_kept_once() -> None:
    documents = {document.name: document.passages for document in embedded.documents()}
    assert documents == {
        "topic assert": (
            "The statement",
            "Assert statements insert assertions into a program.",
        ),
        "topic repeated": ("This passage is repeated elsewhere.",),
        "module things.py": (
            "A module about things.",
            "Class docstring comes first.",
            "Then that of its method.",
            "A lone surrogate  cannot be encoded.",
        ),
    }


def test_fingerprint_follows_the_files(library: Path) -> None:
    before = embedded.EmbeddedText().fingerprint()
    assert embedded.EmbeddedText().fingerprint() == before
    (library / "site-packages" / "other.py").write_text("")
    assert embedded.EmbeddedText().fingerprint() == before
    (library / "things.py").rename(library / "renamed.py")
    assert embedded.EmbeddedText().fingerprint() != before


def test_a_python_without_sources_is_said(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded.sysconfig, "get_path", lambda name: str(library / "nothing"))
    with pytest.raises(UserError, match="no standard library sources"):
        embedded.documents()
