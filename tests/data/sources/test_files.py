"""Text files as a source: units of bounded size, no unit in two splits, and every split filled or a way to fill it."""

import gzip
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from equilibria.data.sources import files
from equilibria.data.sources.base import Split
from equilibria.data.sources.files import FilesText
from equilibria.errors import UserError
from processes import environment

WORDS = ["the", "cat", "sat", "on", "the", "mat", "and", "looked", "at", "the", "moon", "over", "a", "café"]


def write(path: Path, text: str) -> Path:
    content = text.encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def sentence(generator: random.Random, words: int = 12) -> str:
    return " ".join(generator.choices(WORDS, k=words)) + f" {generator.random()}"


def shares(source: FilesText) -> dict[Split, float]:
    sizes: dict[Split, float] = {split: sum(map(len, source.pieces(split))) for split in source.splits()}
    total = sum(sizes.values())
    return {split: sizes[split] / total for split in source.splits()}


def test_units_are_paragraphs_where_there_are_enough(tmp_path: Path) -> None:
    generator = random.Random(1)
    paragraphs = [[f"{number} {sentence(generator)}" for _ in range(3)] for number in range(800)]
    text = "\n\n" + "\n \n\n".join("\n".join(lines) for lines in paragraphs) + "\n\n"
    source = FilesText((write(tmp_path / "book.txt", text),))
    assert source.remark() is None
    found = [list(source.pieces(split)) for split in source.splits()]
    assert sorted(line for split in found for line in split) == sorted(
        line + "\n" for lines in paragraphs for line in lines
    )
    numbers = [{line.split()[0] for line in split} for split in found]
    assert sum(map(len, numbers)) == len(set().union(*numbers)) == 800, "lines of a paragraph stay together"
    assert list(source.whole()) == [line + "\n" for lines in paragraphs for line in lines]


@pytest.mark.parametrize("name", ["lines.txt", "lines.txt.gz"])
def test_without_blank_lines_units_are_lines(name: str, tmp_path: Path) -> None:
    text = "\n".join(f"paragraph {number % 3000}" for number in range(4000))
    source = FilesText((write(tmp_path / name, text), write(tmp_path / "b.txt", "\n" + text + "\n\n")), 0.1, 0.05)
    assert source.remark() is None
    splits = {split: list(source.pieces(split)) for split in source.splits()}
    assert sum(map(len, splits.values())) == 8000
    assert 0.08 < len(splits["valid"]) / 8000 < 0.12
    assert 0.035 < len(splits["test"]) / 8000 < 0.065
    sets = [set(passages) for passages in splits.values()]
    assert sum(map(len, sets)) == len(set().union(*sets)) == 3000
    assert source.name == f"{name} and 1 more"


def test_where_paragraphs_are_too_few_units_are_lines(tmp_path: Path) -> None:
    generator = random.Random(2)
    lines = [sentence(generator) for _ in range(5000)]
    source = FilesText((write(tmp_path / "book.txt", "\n".join([*lines[:2500], "", *lines[2500:]])),))
    assert source.remark() == ("book.txt is split by lines: it has too few paragraphs to hold out the requested shares")
    assert sorted(piece for split in source.splits() for piece in source.pieces(split)) == sorted(
        line + "\n" for line in lines
    )
    found = shares(source)
    assert 0.035 < found["valid"] < 0.065
    assert 0.035 < found["test"] < 0.065


def test_one_line_is_split_into_parts_between_words(tmp_path: Path) -> None:
    generator = random.Random(3)
    line = " ".join(sentence(generator) for _ in range(5000))
    source = FilesText((write(tmp_path / "line.txt", line),))
    assert "is split by parts of lines: it has too few paragraphs" in str(source.remark())
    found = shares(source)
    assert all(found[split] >= 0.025 for split in ("valid", "test"))
    pieces = {split: list(source.pieces(split)) for split in source.splits()}
    assert sorted(word for split in pieces.values() for piece in split for word in piece.split()) == sorted(
        line.split()
    )
    assert sum(piece.count("\n") for split in pieces.values() for piece in split) == 1
    assert "".join(source.whole()) == line + "\n"


def test_one_large_paragraph_does_not_stay_whole(tmp_path: Path) -> None:
    generator = random.Random(4)
    small = "\n\n".join(sentence(generator) for _ in range(300))
    large = "\n".join(sentence(generator) for _ in range(60_000))
    source = FilesText((write(tmp_path / "book.txt", f"{small}\n\n{large}\n"),), 0.1, 0)
    assert 0.05 < shares(source)["valid"] < 0.2


@given(st.text("ab é\n", max_size=80), st.integers(1, 20))
def test_nothing_is_lost_and_no_unit_is_long(tmp_path_factory: pytest.TempPathFactory, text: str, longest: int) -> None:
    path = write(tmp_path_factory.getbasetemp() / "any.txt", text)
    for by_line in (True, False):
        units = list(files._units_of_file(files._Cut(path, by_line, longest)))
        assert all(sum(map(len, unit)) <= 2 * longest for unit in units)
        kept = "".join(piece for unit in units for piece in unit)
        assert re.sub(r"\s", "", kept) == re.sub(r"\s", "", text)
        lines = [line for line in text.split("\n") if line and not line.isspace()]
        if all(len(line) < longest for line in text.split("\n")):
            assert kept == "".join(line + "\n" for line in lines)


def test_splits_and_fingerprints_are_what_they_were(tmp_path: Path) -> None:
    generator = random.Random(5)
    path = write(tmp_path / "book.txt", "\n\n".join(sentence(generator) for _ in range(1000)))
    for _ in range(2):
        source = FilesText((path,))
        assert source.fingerprint() == "25c831bc152a02c7c3cf84d1fa21926c"
        assert [sum(map(len, source.pieces(split))) for split in source.splits()] == [62579, 2870, 3434]


def test_without_test_fraction_there_is_no_test_split(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "\n".join(map(str, range(100))))
    source = FilesText((path,), valid_fraction=0.2, test_fraction=0)
    assert source.splits() == ("train", "valid")
    assert len([*source.pieces("train"), *source.pieces("valid")]) == 100
    with pytest.raises(UserError, match=r"no test split; give a test_fraction above 0"):
        list(source.pieces("test"))
    assert source.fingerprint() != FilesText((path,), valid_fraction=0.1, test_fraction=0).fingerprint()


def test_impossible_fractions_are_named_by_their_keys(tmp_path: Path) -> None:
    path = write(tmp_path / "one.txt", "a single paragraph")
    for valid, test in ((0.0, 0.1), (0.5, 0.5), (-0.1, 0.1), (0.1, -0.1), (float("nan"), 0.1)):
        with pytest.raises(UserError, match=r"valid_fraction = .* and test_fraction = .* leave an empty"):
            FilesText((path,), valid, test)


def test_errors_name_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="files is empty"):
        FilesText(())
    path = write(tmp_path / "one.txt", "text")
    with pytest.raises(UserError, match=r"empty\.txt holds no text"):
        list(FilesText((path, write(tmp_path / "empty.txt", "\n \n"))).pieces("train"))
    with pytest.raises(UserError, match=r"missing\.txt does not exist"):
        FilesText((tmp_path / "missing.txt",)).fingerprint()


def test_a_split_that_stays_empty_names_the_fraction_that_fills_it(tmp_path: Path) -> None:
    path = write(tmp_path / "few.txt", "one\ntwo\nthree\nfour\nfive\n")
    fractions: dict[str, Any] = {"valid_fraction": 0.001, "test_fraction": 0.001}
    for _ in range(2):
        with pytest.raises(
            UserError, match=r"none of its 5 parts of lines fell into the \w+ split; give \w+_fraction"
        ) as problem:
            list(FilesText((path,), **fractions).pieces("train"))
        key, value = re.findall(r"(\w+) = ([\d.]+) or more", str(problem.value))[0]
        with pytest.raises(UserError):
            list(FilesText((path,), **{**fractions, key: float(value) - 0.002}).pieces("train"))
        fractions[key] = float(value)
    assert all(shares(FilesText((path,), **fractions)).values())


def test_a_text_that_no_fraction_divides_says_so(tmp_path: Path) -> None:
    path = write(tmp_path / "same.txt", "the same\n" * 1000)
    with pytest.raises(UserError, match=r"none of its 1000 parts of lines fell into the \w+ split; give more text"):
        list(FilesText((path,)).pieces("train"))


_PEAK = """
import resource, sys
from pathlib import Path
from equilibria.data.sources.files import FilesText

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

before, source = peak(), FilesText((Path(sys.argv[1]),))
sizes = [sum(map(len, source.pieces(split))) for split in source.splits()]
print(peak() - before, *sizes)
"""


@pytest.mark.parametrize("end", ["\n", " ", ""])
def test_a_paragraph_of_any_length_takes_little_memory(end: str, tmp_path: Path) -> None:
    path = tmp_path / "paragraph.txt"
    with path.open("w") as file:
        file.writelines(f"{number}{'.' * 50}{end}" for number in range(180_000))
    size = path.stat().st_size
    command = [sys.executable, "-c", _PEAK, str(path)]
    shown = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True).stdout
    grown, *sizes = map(int, shown.split())
    assert sum(sizes) >= size
    assert min(sizes) > 0.02 * size
    assert grown < size, "the text is about 10 MB; it was held at several times its size"
