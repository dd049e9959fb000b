"""Sources: which splits they have, what a passage is, and that no passage is in two splits."""

import gzip
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from equilibria.data.corpus import EmbeddedText, Split, TextFiles, TextFolder, assigned
from equilibria.errors import UserError

SHARED = Path(__file__).parents[3] / "shared" / "data"


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
    source = TextFolder(folder)
    assert source.splits() == ("train", "valid")
    assert list(source.pieces("train")) == ["\n", " = Title = \n", "\n", "some text\n"]
    assert list(source.pieces("valid")) == ["held out\n", "more\n"]
    assert source.name == folder.name


def test_folder_takes_the_names_of_the_wikitext_releases(tmp_path: Path) -> None:
    for split in ("train", "valid", "test"):
        write(tmp_path / f"wiki.{split}.tokens", f"the {split} text\n")
    source = TextFolder(tmp_path)
    assert source.splits() == ("train", "valid", "test")
    assert list(source.pieces("test")) == ["the test text\n"]


def test_folder_fingerprint_follows_the_content(folder: Path) -> None:
    before = TextFolder(folder).fingerprint()
    assert TextFolder(folder).fingerprint() == before
    write(folder / "train.txt", "other text\n")
    assert TextFolder(folder).fingerprint() != before


def test_folder_errors_name_what_is_wrong(folder: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere does not exist"):
        TextFolder(folder / "nowhere").splits()
    with pytest.raises(UserError, match=r"train\.txt is a file; give a folder"):
        TextFolder(folder / "train.txt").splits()
    with pytest.raises(UserError, match=r"has no test file; add test\.txt"):
        list(TextFolder(folder).pieces("test"))
    write(folder / "train.txt", "\n \n")
    with pytest.raises(UserError, match=r"train\.txt holds no text"):
        list(TextFolder(folder).pieces("train"))
    write(folder / "train.txt.gz", "twice")
    with pytest.raises(UserError, match=r"2 train files, train\.txt and train\.txt\.gz"):
        TextFolder(folder).splits()


def test_folder_without_a_training_file_says_what_it_found(folder: Path) -> None:
    (folder / "train.txt").unlink()
    with pytest.raises(UserError, match=r"has no train\.txt .*found: wiki\.valid\.txt\.gz"):
        TextFolder(folder).splits()


def test_files_are_split_into_paragraphs_at_blank_lines(tmp_path: Path) -> None:
    path = write(tmp_path / "book.txt", "\n\none\ntwo\n\n\n three\n \nfour\n\n")
    source = TextFiles((path,), 0.3, 0.3)
    assert all_passages(source) == {"one", "two", " three", "four"}
    both = [list(passages(source, split)) for split in source.splits()]
    assert sum("one" in found for found in both) == 1
    assert all(("one" in found) == ("two" in found) for found in both), "lines of a paragraph stay together"


def test_files_without_blank_lines_are_split_into_lines(tmp_path: Path) -> None:
    path = write(tmp_path / "lines.txt.gz", "\none\ntwo\nthree\n\n")
    assert all_passages(TextFiles((path,), 0.3, 0.3)) == {"one", "two", "three"}


def all_passages(source: TextFiles) -> set[str]:
    return {passage for split in source.splits() for passage in passages(source, split)}


def passages(source: TextFiles, split: Split) -> list[str]:
    try:
        return [piece.removesuffix("\n") for piece in source.pieces(split)]
    except UserError as error:
        if "fell into" not in str(error):
            raise
        return []  # a few paragraphs may leave a split empty


def test_files_split_by_share_with_no_passage_in_two_splits(tmp_path: Path) -> None:
    text = "\n\n".join(f"paragraph {number % 3000}" for number in range(4000))
    source = TextFiles((write(tmp_path / "a.txt", text), write(tmp_path / "b.txt", text)), 0.1, 0.05)
    splits = {split: list(source.pieces(split)) for split in source.splits()}
    assert sum(map(len, splits.values())) == 8000
    assert 0.08 < len(splits["valid"]) / 8000 < 0.12
    assert 0.035 < len(splits["test"]) / 8000 < 0.065
    sets = [set(passages) for passages in splits.values()]
    assert sum(map(len, sets)) == len(set().union(*sets)) == 3000
    assert source.name == "a.txt and 1 more"


def test_files_without_test_fraction_have_no_test_split(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "\n".join(map(str, range(100))))
    source = TextFiles((path,), valid_fraction=0.2, test_fraction=0)
    assert source.splits() == ("train", "valid")
    assert len([*source.pieces("train"), *source.pieces("valid")]) == 100
    with pytest.raises(UserError, match="no test split"):
        list(source.pieces("test"))
    assert source.fingerprint() != TextFiles((path,), valid_fraction=0.1, test_fraction=0).fingerprint()


def test_files_errors_name_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no text files given"):
        TextFiles(())
    path = write(tmp_path / "one.txt", "a single paragraph")
    for valid, test in ((0.0, 0.1), (0.5, 0.5), (-0.1, 0.1), (0.1, -0.1), (float("nan"), 0.1)):
        with pytest.raises(UserError, match="leave an empty split"):
            TextFiles((path,), valid, test)
    with pytest.raises(UserError, match=r"one\.txt: none of 1 paragraphs fell into the valid split"):
        list(TextFiles((path,)).pieces("valid"))
    with pytest.raises(UserError, match=r"empty\.txt holds no text"):
        list(TextFiles((path, write(tmp_path / "empty.txt", ""))).pieces("train"))
    with pytest.raises(UserError, match=r"missing\.txt does not exist"):
        TextFiles((tmp_path / "missing.txt",)).fingerprint()


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
    pieces = TextFolder(tmp_path).pieces("train")
    assert sum(len(piece.split()) + 1 for piece in pieces) == tokens
