"""Sudokus from files: what is read, which are drawn, and how they are shuffled."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from equilibria.data import SudokuFiles
from equilibria.errors import UserError
from sudokus import BOARD, boards, line, write

TRAIN, TEST = boards(60, 1), boards(30, 2)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path, "train", *TRAIN)
    write(tmp_path, "test", *TEST)
    return tmp_path


def rows(*parts: torch.Tensor) -> list[tuple[int, ...]]:
    return [tuple(row) for part in parts for row in part.tolist()]


def test_files_are_read_as_they_are(folder: Path) -> None:
    task = SudokuFiles(path=folder, augment=False, held_out=10)
    stream = task.training(20)
    for first in (0, 3):  # two passes
        batches = [stream.at(first + index) for index in range(3)]
        pairs = {*zip(rows(*(b.inputs for b in batches)), rows(*(b.targets for b in batches)), strict=True)}
        assert pairs == {*zip(map(tuple, TRAIN[0].tolist()), map(tuple, TRAIN[1].tolist()), strict=True)}
    assert rows(stream.at(0).inputs, stream.at(1).inputs) != rows(stream.at(3).inputs, stream.at(4).inputs)
    batch = stream.at(1)
    assert batch.inputs.dtype == batch.targets.dtype == torch.int64
    assert batch.answers is not None
    assert bool((batch.answers == (batch.inputs == 0)).all())


def test_splits_are_parts_of_the_test_file(folder: Path) -> None:
    task = SudokuFiles(path=folder, held_out=10)
    assert task.splits() == ("valid", "test")
    valid, test = (rows(*(b.inputs for b in task.split(name).segments(7))) for name in ("valid", "test"))
    assert (len(valid), len(test)) == (10, 20)
    assert {*valid, *test} == {*map(tuple, TEST[0].tolist())}
    other = SudokuFiles(path=folder, held_out=10, seed=1)
    assert {*rows(*(b.inputs for b in other.split("valid").segments(10)))} != {*valid}
    assert SudokuFiles(path=folder, held_out=30).splits() == ("valid",)
    with pytest.raises(UserError, match="has no test split"):
        SudokuFiles(path=folder, held_out=30).split("test")


def test_some_puzzles_of_the_training_file(folder: Path) -> None:
    task = SudokuFiles(path=folder, puzzles=12, augment=False, held_out=10)
    drawn = {*rows(*(task.training(6).at(index).inputs for index in range(2)))}
    assert len(drawn) == 12
    assert drawn < {*map(tuple, TRAIN[0].tolist())}
    again = {*rows(*(task.training(5).at(index).inputs for index in range(40)))}
    assert again == drawn
    other = SudokuFiles(path=folder, puzzles=12, augment=False, held_out=10, seed=1)
    assert {*rows(*(other.training(6).at(index).inputs for index in range(2)))} != drawn
    every = SudokuFiles(path=folder, puzzles=60, augment=False, held_out=10)
    assert {*rows(*(every.training(20).at(index).inputs for index in range(3)))} == {*map(tuple, TRAIN[0].tolist())}


def test_training_puzzles_are_shuffled_anew_each_time_and_held_out_ones_never(folder: Path) -> None:
    task = SudokuFiles(path=folder, puzzles=4, held_out=10)
    kept = SudokuFiles(path=folder, puzzles=4, held_out=10, augment=False)
    stream, plain = task.training(4), kept.training(4)
    seen = set()
    for index in range(20):
        batch, as_read = stream.at(index), plain.at(index)
        for puzzle, answer in zip(batch.inputs.numpy(), batch.targets.numpy(), strict=True):
            assert ((puzzle == answer) | (puzzle == 0)).all()
            for unit in BOARD.units:
                assert len({*zip(unit.tolist(), answer.tolist(), strict=True)}) == 81  # each digit once in each
        assert (BOARD.digest(batch.inputs.numpy()) == BOARD.digest(as_read.inputs.numpy())).all()
        seen |= {*rows(batch.inputs)}
    assert len(seen) == 80
    for one, other in zip(task.split("valid").segments(4), kept.split("valid").segments(4), strict=True):
        assert torch.equal(one.inputs, other.inputs)


def test_a_batch_is_a_function_of_its_index_the_seed_and_each_row(folder: Path) -> None:
    task = SudokuFiles(path=folder, puzzles=9, held_out=10)
    whole = task.training(6).at(7)
    assert torch.equal(replace(task).training(6).at(7).inputs, whole.inputs)
    for row in range(6):
        alone = task.training(6).at(7, [row])
        assert torch.equal(alone.inputs[0], whole.inputs[row])
        assert torch.equal(alone.targets[0], whole.targets[row])
    assert not torch.equal(replace(task, seed=5).training(6).at(7).inputs, whole.inputs)


def test_a_training_puzzle_that_is_held_out_is_left_out_however_it_is_shuffled(folder: Path) -> None:
    draws = np.random.default_rng(3).integers(0, 2**62, (2, BOARD.draws))
    moved = BOARD.shuffled(np.stack([TEST[0][:2], TEST[1][:2]], axis=1), draws)
    write(folder, "train", *np.concatenate([np.stack(TRAIN, axis=1), moved]).swapaxes(0, 1))
    task = SudokuFiles(path=folder, held_out=30)
    assert task.samples == 60
    write(folder, "train", *TEST)
    with pytest.raises(UserError, match="has no puzzle but those for validation"):
        SudokuFiles(path=folder, held_out=30).training(4)


def test_what_it_says_of_itself(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    task = SudokuFiles(path=folder, held_out=10)
    assert (task.directed, task.grid, task.length, task.vocabulary_size) == (False, (9, 9), 81, 10)
    assert task.tokenizer.encode("530 070")[:3] == [5, 3, 0]
    copied = tmp_path_factory.mktemp("elsewhere")
    write(copied, "train", *TRAIN)
    write(copied, "test", *TEST)
    assert replace(task, path=copied).fingerprint == task.fingerprint
    for other in (replace(task, puzzles=59), replace(task, augment=False), replace(task, seed=1)):
        assert other.fingerprint != task.fingerprint
    blanks = BOARD.candidates(TEST[0])[TEST[0] == 0]
    whole = SudokuFiles(path=folder, held_out=30).yardsticks("valid")
    assert whole["chance_accuracy"] == pytest.approx((1 / blanks).mean())
    assert whole["chance_loss"] == pytest.approx(np.log(blanks).sum() / TEST[0].size)
    assert task.yardsticks("test") != task.yardsticks("valid")


GOOD = line(1, TRAIN[0][0], TRAIN[1][0])
HEADER = "source,question,answer,rating"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "train.csv does not exist"),
        ("", "has no columns question and answer in its first line: ''"),
        (f"question,rating\n{GOOD}\n", "has no columns question and answer in its first line: 'question,rating'"),
        (f"{HEADER}\n{GOOD}\nx,y\n", "train.csv: line 3 has fewer columns than the first"),
        (f"{HEADER}\n{GOOD}\nx,123,456,1\n", "has a puzzle or an answer of 3 characters, not 81: '123'"),
        (f"{HEADER}\n\n{GOOD}\n", "train.csv: line 2 has fewer columns than the first"),
        (f"{HEADER}\nx,,{'1' * 81},1\n", "has a puzzle or an answer of 0 characters, not 81: ''"),
        (f"{HEADER}\nx,{'.' * 81},{'x' * 81},1\n", "that is not digits and '.', or whose answer is none"),
        (f"{HEADER}\nx,{'.' * 80}é,{'1' * 81},1\n", "that is not digits and '.', or whose answer is none"),
        (f"{HEADER}\nx,{'.' * 81},{'1' * 80}.,1\n", "that is not digits and '.', or whose answer is none"),
        (f"{HEADER}\nx,{'2' + '.' * 80},{'1' * 81},1\n", "that is not digits and '.', or whose answer is none"),
        (f"{HEADER}\nx,{'.' * 200_000},{'1' * 81},1\n", "train.csv is no CSV file"),
    ],
)
def test_files_that_cannot_be_used_are_named(folder: Path, content: str | None, message: str) -> None:
    if content is None:
        (folder / "train.csv").unlink()
    else:
        (folder / "train.csv").write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        SudokuFiles(path=folder, held_out=10).training(4)


def test_more_than_there_is_is_an_error(folder: Path) -> None:
    with pytest.raises(UserError, match=r"train\.csv has 60 puzzles, fewer than puzzles, 61"):
        SudokuFiles(path=folder, puzzles=61, held_out=10).training(4)
    with pytest.raises(UserError, match=r"test\.csv has 30 puzzles, fewer than held_out, 31"):
        SudokuFiles(path=folder, held_out=31).training(4)
    with pytest.raises(ValueError, match="puzzles must be at least 1, found 0"):
        SudokuFiles(path=folder, puzzles=0)
