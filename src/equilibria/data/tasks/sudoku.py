"""Sudoku, of 4 × 4 and 6 × 6 cells: puzzles with one solution, drawn from their numbers."""

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Literal

import numpy as np
import torch

from equilibria.data.batches import Segment
from equilibria.data.sources.base import Split
from equilibria.data.tasks.drawn import DrawnTask
from equilibria.data.tasks.numbering import drawn, hashed
from equilibria.data.tokenizers import Tokenizer, digit_tokenizer
from equilibria.ranges import one_of

Size = Literal[4, 6]
_REPEATS = 6  # leave of the 39,168 solutions of 6 × 6 cells about one too many


@dataclass(frozen=True)
class Board:
    """The cells of a sudoku: `size × size`, in boxes of `rows × columns` cells, where size is `rows · columns`.

    Puzzles are `(B, size²)` integers, row by row, 0 where nothing is given.
    """

    rows: int
    columns: int

    @property
    def size(self) -> int:
        """Digits, and cells of a row, of a column and of a box."""
        return self.rows * self.columns

    @cached_property
    def units(self) -> np.ndarray:
        """`(3, size²)`: the row, the column and the box of each cell."""
        row, column = np.divmod(np.arange(self.size**2), self.size)
        return np.stack([row, column, row // self.rows * self.rows + column // self.columns])

    @property
    def draws(self) -> int:
        """Random numbers that `shuffled` takes for a puzzle."""
        return 3 * self.size + self.size // self.rows + self.size // self.columns + 1

    def shuffled(self, boards: np.ndarray, draws: np.ndarray) -> np.ndarray:
        """Boards `(B, K, size²)`, each with all that its puzzle's symmetries may do, as `(B, draws)` integers say:
        digits, bands, rows of a band, stacks and columns of a stack change places, and, where boxes are square, rows
        become columns."""
        size, count = self.size, len(boards)
        digits, lines, columns, bands, stacks, turned = np.split(
            draws, np.cumsum([size, size, size, size // self.rows, size // self.columns]), axis=1
        )
        across = _order(bands, lines.reshape(count, -1, self.rows))
        down = _order(stacks, columns.reshape(count, -1, self.columns))
        cells = size * across[:, :, None] + down[:, None, :]
        if self.rows == self.columns:
            cells = np.where(turned[:, :, None] % 2 == 0, cells, cells.transpose(0, 2, 1))
        named = np.pad(1 + digits.argsort(axis=1), ((0, 0), (1, 0)))  # a blank stays one
        moved = np.take_along_axis(boards, cells.reshape(count, 1, -1), axis=2)
        return np.take_along_axis(named[:, None], moved, axis=2)

    def digest(self, puzzles: np.ndarray) -> np.ndarray:
        """`(B,)` integers from 0: the same for puzzles that `shuffled` makes of one another, and hardly ever for others
        (Weisfeiler and Leman 1968: cells are told apart by what shares a row, column, box, band, stack or digit with
        them, three times)."""
        cells = hashed(0, 0, puzzles > 0).reshape(-1, self.size, self.size)
        given = (puzzles[:, :, None] == 1 + np.arange(self.size)).astype(np.int64)
        for _ in range(3):
            across, down = _lines(cells, self.rows), _lines(cells.transpose(0, 2, 1), self.columns)
            boxes = cells.reshape(-1, self.columns, self.rows, self.rows, self.columns).sum(axis=(2, 4))
            boxes = hashed(0, 1, boxes).repeat(self.rows, axis=1).repeat(self.columns, axis=2)
            digits = hashed(0, 2, cells.reshape(len(cells), 1, -1) @ given)
            shared = (given @ digits.transpose(0, 2, 1)).reshape(cells.shape)
            cells = hashed(0, 3, cells + across[:, :, None] + down[:, None, :] + boxes + shared)
        return hashed(0, 4, cells.sum(axis=(1, 2)))

    def candidates(self, puzzles: np.ndarray) -> np.ndarray:
        """`(B, size²)`: how many digits the row, column and box of a cell leave for it."""
        taken = np.zeros((*puzzles.shape, self.size), dtype=bool)
        for unit in self.units:
            of_unit = np.zeros((len(puzzles), self.size, self.size + 1), dtype=bool)
            of_unit[np.arange(len(puzzles))[:, None], unit, puzzles] = True
            taken |= of_unit[:, unit, 1:]
        return self.size - taken.sum(axis=2)

    def yardsticks(self, segment: Segment) -> dict[str, float]:
        """Of who guesses among what the rows, columns and boxes of a puzzle leave: loss, and share of right answers."""
        puzzles = segment.inputs.numpy()
        left = self.candidates(puzzles)[puzzles == 0]
        return {
            "chance_loss": float(np.log(left).sum() / puzzles.size),
            "chance_accuracy": float((1.0 / left).mean()),
        }

    def segment(self, puzzles: np.ndarray, solutions: np.ndarray) -> Segment:
        """Puzzles and solutions as inputs and targets; blank cells are the answers."""
        inputs, targets = (torch.from_numpy(boards.astype(np.int64)) for boards in (puzzles, solutions))
        return Segment(inputs, targets, starts=True, answers=inputs == 0)


@dataclass(frozen=True, kw_only=True)
class Sudoku(DrawnTask):
    """Sudokus with one solution, of 4 × 4 cells in boxes of 2 × 2, or of 6 × 6 in boxes of 2 × 3.

    Solutions are drawn evenly among all that there are (288 and 28,200,960), the cells that are given evenly among
    those that leave no other solution. Inputs, row by row: the digits, 0 where none is given. Targets: the solution.
    Answers are the blanks.

    Puzzles that differ by their digits' names, or by the order of bands, stacks, and rows and columns within them (and,
    with square boxes, by rows for columns), are in the same split.

    Args:
        size: cells of a row, 4 or 6.
        givens: cells that are given; with few, many are drawn for each that has one solution: at least 5 of 16, and 12
            of 36.
    """

    size: Size = 6
    givens: int = 18

    def __post_init__(self) -> None:
        one_of(Size, size=self.size)
        least, most = {4: 5, 6: 12}[self.size], self.size**2 - 1
        if not least <= self.givens <= most:
            raise ValueError(f"givens must be between {least} and {most} for size {self.size}, found {self.givens}")
        super().__post_init__()

    @property
    def board(self) -> Board:
        return Board(2, self.size // 2)

    @property
    def vocabulary_size(self) -> int:
        return self.size + 1

    @property
    def grid(self) -> tuple[int, int]:
        return self.size, self.size

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return digit_tokenizer(self.vocabulary_size)

    @property
    def name(self) -> str:
        return f"sudoku of {self.size} × {self.size}"

    def yardsticks(self, name: Split) -> dict[str, float]:
        return self.board.yardsticks(self.segment(np.arange(self.held_out)))

    def drawn(self, numbers: np.ndarray) -> np.ndarray:
        draws = drawn(numbers, 1 + self.size + self.size**2, self.seed)
        blanks = draws[:, 1 + self.size :].argsort(axis=1)[:, self.givens :]
        puzzles = self._solutions(draws)
        np.put_along_axis(puzzles, blanks, 0, axis=1)
        return puzzles

    def digest(self, puzzles: np.ndarray) -> np.ndarray:
        return self.board.digest(puzzles)

    def sound(self, puzzles: np.ndarray) -> np.ndarray:
        return solutions(self.board, puzzles) == 1

    def solved(self, puzzles: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        return self._solutions(drawn(numbers, 1 + self.size, self.seed))

    def answers(self, puzzles: np.ndarray) -> np.ndarray:
        return puzzles == 0

    def _solutions(self, draws: np.ndarray) -> np.ndarray:
        grids = _grids(self.board)
        named = 1 + draws[:, 1 : 1 + self.size].argsort(axis=1)
        return np.take_along_axis(named, grids[draws[:, 0] % len(grids)], axis=1)


def solutions(board: Board, puzzles: np.ndarray) -> np.ndarray:
    """How many solutions each puzzle has, `(B,)`; for small boards, all of whose solutions are known.

    A solution, whatever its digits are called, is told by which cells are alike. What is left of all solutions when
    some of a puzzle's givens that repeat another must be like it is an intersection of sets, one bit for each solution;
    the few that are left are compared with all givens.
    """
    grids, alike = _grids(board), _alike(board)
    row, cell, names = np.arange(len(puzzles))[:, None], np.arange(board.size**2), 1 + np.arange(board.size)
    given, has = puzzles > 0, puzzles[:, :, None] == names
    first = np.where(given, has.argmax(axis=1)[row, puzzles - 1], cell)  # with the same digit
    left = np.tile(alike[0, 0], (len(puzzles), 1))
    spread = 7 * cell % len(cell)  # neighbours tell less
    for repeat in spread[(first == cell)[:, spread].argsort(axis=1, kind="stable")[:, :_REPEATS]].T:
        left &= alike[repeat, first[row[:, 0], repeat]]
    which, word = np.nonzero(left)
    some, bit = np.nonzero(np.unpackbits(left[which, word].view(np.uint8).reshape(-1, 8), axis=1))
    which, found = which[some], grids[64 * word[some] + bit]
    agrees = (found == np.take_along_axis(found, first[which], axis=1)).all(axis=1)
    seen = np.bitwise_or.reduce(np.where(given[which], 1 << found, 0), axis=1)
    known = has.any(axis=1).sum(axis=1)
    agrees &= (seen[:, None] >> np.arange(board.size) & 1).sum(axis=1) == known[which]  # different digits differ
    # Digits that are nowhere given may have each other's names.
    renamed = np.array([math.factorial(board.size - int(digits)) for digits in known], dtype=np.int64)
    return renamed * np.bincount(which[agrees], minlength=len(puzzles))


@lru_cache
def _grids(board: Board) -> np.ndarray:
    """All solutions whose first row is 0, 1, …, `(N, size²)`: renaming the digits makes all others of them."""
    grids = np.arange(board.size)[None]
    for cell in range(board.size, board.size**2):
        seen = (board.units[:, :cell] == board.units[:, cell, None]).any(axis=0)
        taken = np.bitwise_or.reduce(1 << grids[:, seen], axis=1)
        which, digit = np.nonzero(taken[:, None] >> np.arange(board.size) & 1 == 0)
        grids = np.concatenate([grids[which], digit[:, None]], axis=1)
    return grids.astype(np.int8)


@lru_cache
def _alike(board: Board) -> np.ndarray:
    """For two cells those solutions in which they are alike, as bits of 64-bit words, `(size², size², W)`."""
    grids = _grids(board).T
    alike = np.zeros((len(grids), len(grids), 8 * -(-grids.shape[1] // 64)), dtype=np.uint8)
    for one, cell in enumerate(grids):
        bits = np.packbits(grids == cell, axis=1)
        alike[one, :, : bits.shape[1]] = bits
    return alike.view(np.uint64)


def _order(groups: np.ndarray, members: np.ndarray) -> np.ndarray:
    """Lines in the order of `(B, G)` groups, and within each in that of `(B, G, M)` members: `(B, G · M)`."""
    place = groups.argsort(axis=1)[:, :, None]
    return (members.shape[2] * place + members.argsort(axis=2)).reshape(len(groups), -1)


def _lines(cells: np.ndarray, band: int) -> np.ndarray:
    """A hash for each row, of what is in it and in its band of so many rows."""
    line = hashed(0, 5, cells.sum(axis=2))
    bands = hashed(0, 6, line.reshape(len(cells), -1, band).sum(axis=2))
    return hashed(0, 7, line + bands.repeat(band, axis=1))
