"""Sudokus, beside a solver that knows only the rules."""

import math
from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from equilibria.data import Sudoku
from equilibria.data.tasks.sudoku import Board, solutions
from equilibria.errors import UserError


def allowed(cells: Sequence[int], cell: int, rows: int, columns: int) -> list[int]:
    """Digits that no cell of the same row, column or box has."""
    size = rows * columns
    row, column = divmod(cell, size)
    seen = {
        cells[size * r + c]
        for r in range(size)
        for c in range(size)
        if r == row or c == column or (r // rows, c // columns) == (row // rows, column // columns)
        if size * r + c != cell
    }
    return [digit for digit in range(1, size + 1) if digit not in seen]


def solved(cells: list[int], rows: int, columns: int, most: int = 2) -> list[list[int]]:
    """Up to so many solutions, by trying all that the rules allow."""
    blanks = [cell for cell, digit in enumerate(cells) if not digit]
    if not blanks:
        return [list(cells)]
    choices = {cell: allowed(cells, cell, rows, columns) for cell in blanks}
    cell = min(blanks, key=lambda blank: len(choices[blank]))
    found: list[list[int]] = []
    for digit in choices[cell]:
        found += solved([*cells[:cell], digit, *cells[cell + 1 :]], rows, columns, most - len(found))
        if len(found) >= most:
            break
    return found


def is_valid(cells: list[int], rows: int, columns: int) -> bool:
    return all(allowed(cells, cell, rows, columns) == [digit] for cell, digit in enumerate(cells))


@settings(deadline=None, max_examples=25)
@given(st.sampled_from([(4, 6), (4, 9), (6, 14), (6, 18), (6, 24), (6, 35)]), st.integers(0, 99))
def test_puzzles_have_one_solution_which_is_the_target(kind: tuple[int, int], seed: int) -> None:
    size, givens = kind
    task = Sudoku(size=size, givens=givens, held_out=2, seed=seed)  # pyright: ignore[reportArgumentType]
    training, held = task.training(3).at(1), next(iter(task.split("valid").segments(2)))
    for segment in (training, held):
        assert segment.inputs.dtype == segment.targets.dtype == torch.int64
        assert segment.answers is not None
        assert bool((segment.answers == (segment.inputs == 0)).all())
        for puzzle, target in zip(segment.inputs.tolist(), segment.targets.tolist(), strict=True):
            assert is_valid(target, 2, size // 2)
            assert sum(digit > 0 for digit in puzzle) == givens
            assert solved(puzzle, 2, size // 2) == [target]


@settings(deadline=None, max_examples=40)
@given(st.sampled_from([4, 6]), st.integers(0, 10**6), st.data())
def test_counts_are_those_of_a_search(size: int, number: int, data: st.DataObject) -> None:
    """Of puzzles with any number of solutions, none included."""
    board = Board(2, size // 2)
    (puzzle,) = Sudoku(size=size, givens=size**2 - 1).drawn(np.array([number]))  # pyright: ignore[reportArgumentType]
    blanks = data.draw(st.lists(st.integers(0, size**2 - 1), min_size=size, max_size=20 if size == 6 else 10))
    puzzle[blanks] = 0
    puzzle[data.draw(st.integers(0, size**2 - 1))] = data.draw(st.integers(0, size))
    found = solved([*puzzle.tolist()], 2, size // 2, most=10**9)
    found = [one for one in found if is_valid(one, 2, size // 2)]
    assert solutions(board, np.stack([puzzle, puzzle])).tolist() == [len(found)] * 2


def test_all_solutions_are_known() -> None:
    """288 and 28,200,960, as published."""
    empty = [np.zeros((1, size**2), dtype=np.int64) for size in (4, 6)]
    assert solutions(Board(2, 2), empty[0]).tolist() == [288]
    assert solutions(Board(2, 3), empty[1]).tolist() == [28_200_960]


def test_all_solutions_are_drawn_evenly() -> None:
    task = Sudoku(size=4, givens=15)
    numbers = np.arange(28_800)
    targets, counts = np.unique(task.solved(task.drawn(numbers), numbers), axis=0, return_counts=True)
    assert len(targets) == 288
    assert np.abs(counts - 100).max() < 6 * 10
    given_cells = (Sudoku(givens=18).drawn(np.arange(4000)) > 0).mean(axis=0)
    assert np.abs(given_cells - 0.5).max() < 6 * 0.5 / math.sqrt(4000)


def test_puzzles_with_one_solution_are_drawn_evenly() -> None:
    """So their solutions are not: of 5 givens each solution has as many puzzles as choices of cells leave it alone."""
    task, board = Sudoku(size=4, givens=5), Board(2, 2)
    numbers = np.arange(100_000)
    puzzles = task.drawn(numbers)
    sound = task.sound(puzzles)
    every, counts = np.unique(task.solved(puzzles, numbers)[sound], axis=0, return_counts=True)
    cells = np.zeros((4368, 16), dtype=bool)
    np.put_along_axis(cells, np.array([*combinations(range(16), 5)]), True, axis=1)
    choices = np.array([int((solutions(board, np.where(cells, one, 0)) == 1).sum()) for one in every])
    expected = sound.sum() * choices / choices.sum()
    assert len(every) == 288
    assert len({*choices.tolist()}) > 1
    assert np.abs(counts - expected).max() < 6 * math.sqrt(expected.max())


def test_more_puzzles_than_in_training_may_be_held_out() -> None:
    trained, other = Sudoku(size=4, givens=8, held_out=10), Sudoku(size=4, givens=8, held_out=60, seed=1)
    other.check_unseen(trained)
    seen = {tuple(row) for row in trained.training(2000).at(0).inputs.tolist()}
    held = {tuple(row) for row in next(iter(other.split("valid").segments(60))).inputs.tolist()}
    assert not seen & held


BOARDS = [Board(2, 2), Board(2, 3), Board(3, 3)]


def any_boards(board: Board, count: int, seed: int) -> np.ndarray:
    """The same solution, with cells left out at random."""
    size = board.size
    row, column = np.divmod(np.arange(size**2), size)
    solution = 1 + (board.columns * (row % board.rows) + row // board.rows + column) % size
    assert is_valid(solution.tolist(), board.rows, board.columns)
    return np.where(np.random.default_rng(seed).random((count, size**2)) < 0.5, solution, 0)


@pytest.mark.parametrize("board", BOARDS)
def test_shuffled_boards_are_valid_and_have_the_same_digest(board: Board) -> None:
    puzzles = any_boards(board, 50, 1)
    full = np.tile(any_boards(board, 200, 2).max(axis=0), (50, 1))
    draws = np.random.default_rng(3).integers(0, 2**62, (50, board.draws))
    moved, answers = board.shuffled(np.stack([puzzles, full], axis=1), draws).swapaxes(0, 1)
    assert all(is_valid(answer, board.rows, board.columns) for answer in answers.tolist())
    assert ((moved == answers) | (moved == 0)).all()
    assert ((moved > 0).sum(axis=1) == (puzzles > 0).sum(axis=1)).all()
    assert (moved != puzzles).any(axis=1).all()
    assert (board.digest(moved) == board.digest(puzzles)).all()


@pytest.mark.parametrize("board", BOARDS)
def test_shuffling_is_each_row_by_its_own_draws(board: Board) -> None:
    full = any_boards(board, 6, 1)[:, None]
    draws = np.random.default_rng(4).integers(0, 2**62, (6, board.draws))
    together = board.shuffled(full, draws)
    alone = [board.shuffled(full[row : row + 1], draws[row : row + 1]) for row in range(6)]
    assert (together == np.concatenate(alone)).all()


def test_every_symmetry_is_drawn() -> None:
    """Of one given cell of 4 × 4: all 16 places and 4 names; where rows become columns too."""
    board = Board(2, 2)
    marked = np.zeros((4000, 1, 16), dtype=np.int64)
    marked[:, 0, 1], marked[:, 0, 2] = 1, 2  # of one row
    moved = board.shuffled(marked, np.random.default_rng(5).integers(0, 2**62, (4000, board.draws)))[:, 0]
    # 8 rows or columns, 8 pairs of places, 12 pairs of names; and each board comes from two of these.
    assert len(np.unique(moved, axis=0)) == 8 * 8 * 12 // 2


def test_digests_tell_puzzles_apart() -> None:
    task = Sudoku(givens=16)
    puzzles = task.drawn(np.arange(5000))
    assert len({*task.digest(puzzles).tolist()}) == 5000


@pytest.mark.parametrize(("size", "givens"), [(4, 7), (6, 20)])
def test_no_held_out_puzzle_is_in_training_however_it_is_shuffled(size: int, givens: int) -> None:
    task = Sudoku(size=size, givens=givens, held_out=100)  # pyright: ignore[reportArgumentType]
    held = torch.cat([segment.inputs for segment in task.split("valid").segments(64)]).numpy()
    trained = np.concatenate([task.training(200).at(index).inputs.numpy() for index in range(3)])
    draws = np.random.default_rng(6).integers(0, 2**62, (100, task.board.draws))
    moved = task.board.shuffled(held[:, None], draws)[:, 0]
    names = {puzzle.tobytes() for puzzle in trained}
    assert not names & {puzzle.tobytes() for puzzle in (*held, *moved)}
    assert not {*task.digest(trained).tolist()} & {*task.digest(moved).tolist()}
    assert len(names) > 500


def test_chance_is_what_rows_columns_and_boxes_leave() -> None:
    task = Sudoku(held_out=40)
    (segment,) = task.split("valid").segments(40)
    left = [
        len(allowed(puzzle, cell, 2, 3))
        for puzzle in segment.inputs.tolist()
        for cell, digit in enumerate(puzzle)
        if not digit
    ]
    assert task.yardsticks("valid") == {
        "chance_loss": pytest.approx(sum(map(math.log, left)) / (40 * 36)),
        "chance_accuracy": pytest.approx(sum(1 / one for one in left) / len(left)),
    }


def test_what_it_says_of_itself() -> None:
    task = Sudoku(size=4, givens=8, samples=30)
    assert (task.causal, task.grid, task.length, task.vocabulary_size) == (False, (4, 4), 16, 5)
    assert task.name == "sudoku of 4 × 4"
    assert task.tokenizer.encode("0120 3004") == [0, 1, 2, 0, 3, 0, 0, 4]
    rows = torch.cat([task.training(10).at(index).inputs for index in range(6)]).tolist()
    assert sorted(rows[:30]) == sorted(rows[30:])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 9}, "size must be one of 4, 6, found 9"),
        ({"givens": 11}, "givens must be between 12 and 35 for size 6, found 11"),
        ({"size": 4, "givens": 16}, "givens must be between 5 and 15 for size 4, found 16"),
        ({"samples": 0}, "samples must be at least 1, found 0"),
    ],
)
def test_impossible_sudokus_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sudoku(**arguments)


def test_where_all_puzzles_are_alike_one_split_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("equilibria.data.tasks.drawn._MOST_DRAWS", 50)
    with pytest.raises(UserError, match="sudoku of 4 × 4: none of 50 puzzles drawn is one for its split"):
        Sudoku(size=4, givens=15, held_out=1).training(4)
