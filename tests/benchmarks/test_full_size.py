"""`equilibria bench full_size`: the text has just so many words, and the steps are those of real processes."""

import json
import random
from pathlib import Path

import pytest

from benchmarks.full_size import mapped_text
from equilibria.cli.app import main
from equilibria.configuration import read_recipe
from equilibria.data.prepared import EncodedSplit, opened


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """Lines of 300 words, some of them often."""
    folder, random_ = tmp_path / "given", random.Random(0)
    folder.mkdir()
    for name, count in (("train.txt", 200), ("valid.txt", 80)):
        lines = (" ".join(f"w{int(300 * random_.random() ** 3)}" for _ in range(20)) for _ in range(count))
        (folder / name).write_text("\n".join(lines) + "\n")
    return folder


@pytest.mark.parametrize("vocabulary", [50, 1000])
def test_a_text_has_as_many_words_as_are_wanted(text: Path, tmp_path: Path, vocabulary: int) -> None:
    place = tmp_path / "mapped"
    place.mkdir()
    mapped_text(text, place, vocabulary)
    data = read_recipe("ptb/deq-trellisnet", [f"--data.path={place}"]).data
    task = opened(data)
    assert task.tokenizer.vocabulary_size == vocabulary
    valid = task.split("valid")
    assert isinstance(valid, EncodedSplit)
    assert valid.tokens.max() < vocabulary


@pytest.mark.slow
def test_steps_of_a_whole_recipe(text: Path, tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    flags = ["--tables", "ptb", "--rows", "deq-trellisnet", "--steps", "4", "--threads", "1", "--out", str(out)]
    assert main(["bench", "full_size", "--data-path", str(text), *flags]) == 0
    (row,) = json.loads(out.read_text())["rows"]
    assert row["recipe"] == "ptb/deq-trellisnet"
    assert 24e6 < row["parameters"] < 24.4e6
    assert row["steps"] == [1, 2, 3, 4]
    assert row["losses"][1] < row["losses"][0]
    assert set(row["evaluated"]) == {"150", "480"}
    assert all(reading["residual"] is not None for reading in row["evaluated"].values())
    assert row["resident"] > 24e6 * 4
