"""Sources: which splits they have, what a passage is, and that no passage is in two splits."""

import gzip
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from equilibria.data import EmbeddedText, FolderText
from equilibria.data.sources.base import assigned
from equilibria.errors import UserError

SHARED = Path(__file__).parents[4] / "shared" / "data"


def write(path: Path, text: str) -> Path:
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "train.txt", "\n = Title = \n\nsome text\n")
    write(tmp_path / "wiki.valid.txt.gz", "held out\nmore")
    return tmp_path


def test_folder_yields_every_line_blank_ones_included(folder: Path) -> None:
    source = FolderText(folder)
    assert source.splits() == ("train", "valid")
    assert list(source.pieces("train")) == ["\n", " = Title = \n", "\n", "some text\n"]
    assert list(source.pieces("valid")) == ["held out\n", "more\n"]
    assert source.name == folder.name


def test_folder_takes_the_names_of_the_wikitext_releases(tmp_path: Path) -> None:
    for split in ("train", "valid", "test"):
        write(tmp_path / f"wiki.{split}.tokens", f"the {split} text\n")
    source = FolderText(tmp_path)
    assert source.splits() == ("train", "valid", "test")
    assert list(source.pieces("test")) == ["the test text\n"]


@pytest.mark.parametrize("name", ["val.txt", "validation.txt.gz", "wiki.val.tokens", "validation.raw"])
def test_validation_files_have_many_names(name: str, tmp_path: Path) -> None:
    write(tmp_path / "train.txt", "some text\n")
    write(tmp_path / name, "held out\n")
    assert FolderText(tmp_path).splits() == ("train", "valid")
    assert list(FolderText(tmp_path).pieces("valid")) == ["held out\n"]
    write(tmp_path / "valid.txt", "twice\n")
    with pytest.raises(UserError, match=rf"2 valid files, .*{name}.*; leave only one"):
        FolderText(tmp_path).splits()


def test_folder_fingerprint_follows_the_content(folder: Path) -> None:
    before = FolderText(folder).fingerprint()
    assert FolderText(folder).fingerprint() == before
    write(folder / "train.txt", "other text\n")
    assert FolderText(folder).fingerprint() != before


def test_folder_errors_name_what_is_wrong(folder: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere does not exist"):
        FolderText(folder / "nowhere").splits()
    with pytest.raises(UserError, match=r"train\.txt is a file; give a folder"):
        FolderText(folder / "train.txt").splits()
    with pytest.raises(UserError, match=r"has no test file; add test\.txt"):
        list(FolderText(folder).pieces("test"))
    write(folder / "train.txt", "\n \n")
    with pytest.raises(UserError, match=r"train\.txt holds no text"):
        list(FolderText(folder).pieces("train"))
    write(folder / "train.txt.gz", "twice")
    with pytest.raises(UserError, match=r"2 train files, train\.txt and train\.txt\.gz"):
        FolderText(folder).splits()


def test_folder_without_a_training_file_says_what_it_found(folder: Path) -> None:
    (folder / "train.txt").unlink()
    with pytest.raises(UserError, match=r"has no train\.txt .*found: wiki\.valid\.txt\.gz"):
        FolderText(folder).splits()


def test_a_folder_of_other_files_names_the_source_that_takes_them(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"found: no file"):
        FolderText(tmp_path).splits()
    write(tmp_path / "a.md", "one\n")
    write(tmp_path / "b.md", "two\n")
    with pytest.raises(UserError, match=r"found: a\.md and 1 more.*--data\.source files --data\.files .*a\.md …"):
        FolderText(tmp_path).splits()


@given(st.text(), st.floats(0.01, 0.4), st.floats(0, 0.4))
def test_a_key_belongs_to_one_split_and_stays_when_fractions_grow(key: str, valid: float, test: float) -> None:
    split = assigned(key, valid, test)
    assert split == assigned(key, valid, test)
    if split == "valid":
        assert assigned(key, valid + 0.1, test) == "valid"


def test_embedded_text_is_english_split_by_topic_without_overlap() -> None:
    source = EmbeddedText()
    splits = {split: list(source.pieces(split)) for split in source.splits()}
    sizes = {split: sum(map(len, passages)) for split, passages in splits.items()}
    assert sum(sizes.values()) > 1_000_000
    assert all(0.02 < sizes[split] / sum(sizes.values()) < 0.15 for split in ("valid", "test"))
    passages = [passage for split in splits.values() for passage in split]
    assert len(passages) == len(set(passages))
    assert not any("\n" in passage[:-1] or ">>>" in passage for passage in passages)
    assert sum(passage.split().count("the") for passage in passages) > 0.03 * sum(
        len(passage.split()) for passage in passages
    )
    assert source.fingerprint() == EmbeddedText().fingerprint()


@pytest.mark.skipif(not (SHARED / "wikitext").is_dir(), reason="../shared/data/wikitext is absent")
@pytest.mark.parametrize(("split", "tokens"), [("valid", 217_646), ("test", 245_569)])
def test_wikitext_2_is_counted_as_published(tmp_path: Path, split: str, tokens: int) -> None:
    (tmp_path / "train.txt.gz").symlink_to(SHARED / "wikitext" / f"wt2.{split}.txt.gz")
    write(tmp_path / "valid.txt", "unused")
    pieces = FolderText(tmp_path).pieces("train")
    assert sum(len(piece.split()) + 1 for piece in pieces) == tokens
