"""Lines of text files, and hashes that must never change."""

import gzip
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from equilibria.data.sources.reading import file_digest, read_pieces, stable_fraction, text_digest, text_size
from equilibria.errors import UserError


def test_compressed_pieces_are_the_same(tmp_path: Path) -> None:
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress("eins\nzwölf\n".encode()))
    assert list(read_pieces(path)) == ["eins\n", "zwölf\n"]


def test_pieces_are_lines_with_their_ends(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeff a \r\n\nb\u2028c\x0cd".encode())
    assert list(read_pieces(path)) == [" a \n", "\n", "b\u2028c\x0cd\n"]
    assert "".join(read_pieces(path, as_bytes=True)) == "\ufeff a \r\n\nb\u2028c\x0cd"


@given(st.lists(st.text("ab é\n", max_size=30), max_size=6), st.integers(1, 9))
def test_long_lines_come_in_parts_that_cut_no_word(tmp_path_factory, lines: list[str], longest: int) -> None:
    text = "\n".join(lines)
    path = tmp_path_factory.mktemp("long") / "a.txt"
    path.write_text(text, encoding="utf-8", newline="")
    exact, pieces = list(read_pieces(path, True, longest)), list(read_pieces(path, longest=longest))
    assert "".join(exact) == text
    assert "".join(pieces) == text + "\n" * bool(text and not text.endswith("\n"))
    assert max(map(len, exact), default=0) <= 2 * longest
    for before, after in pairwise(pieces):
        assert before.endswith("\n") or after.startswith(" ") or " " not in before.lstrip(" ")


def test_any_bytes_can_be_read_as_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(bytes(range(256)) * 3)
    pieces = list(read_pieces(path, as_bytes=True))
    assert len(pieces) == 4
    assert "".join(pieces).encode("utf-8", "surrogateescape") == path.read_bytes()
    assert text_size(path) == 768


def test_the_size_of_a_compressed_text_is_that_of_the_text(tmp_path: Path) -> None:
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress(b"x" * 3_000_000))
    assert text_size(path) == 3_000_000


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.txt does not exist"):
        list(read_pieces(tmp_path / "gone.txt"))
    with pytest.raises(UserError, match="is a folder; name the text files in it"):
        list(read_pieces(tmp_path))
    latin = tmp_path / "latin.txt"
    latin.write_bytes("café".encode("latin-1"))
    with pytest.raises(UserError, match=r"latin\.txt is not UTF-8"):
        list(read_pieces(latin))


def test_a_damaged_gzip_file_is_named(tmp_path: Path) -> None:
    whole = gzip.compress(bytes(range(10, 120)) * 50)
    for name, content in {
        "plain": b"plain text",
        "short": whole[:-20],
        "flipped": whole[:-6] + b"??" + whole[-4:],
        "torn": whole[:20] + b"\xff\xff" + whole[22:],
    }.items():
        path = tmp_path / f"{name}.txt.gz"
        path.write_bytes(content)
        with pytest.raises(UserError, match=rf"{name}\.txt\.gz is a damaged gzip file"):
            list(read_pieces(path))


def test_hashes_are_what_they_were_in_the_first_release() -> None:
    assert text_digest(["a", "b"]) == "6a93c5780b9861cdd8d2761a748d9591"
    assert stable_fraction("topic assert") == 0.4097041049011634


@given(st.lists(st.text()), st.lists(st.text()))
def test_digest_tells_lists_of_strings_apart(one: list[str], other: list[str]) -> None:
    assert (text_digest(one) == text_digest(other)) == (one == other)


@given(st.text())
def test_fraction_is_in_the_half_open_unit_interval(key: str) -> None:
    assert 0 <= stable_fraction(key) < 1


def test_file_digest_follows_the_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"one")
    before = file_digest(path)
    path.write_bytes(b"two")
    assert file_digest(path) != before
