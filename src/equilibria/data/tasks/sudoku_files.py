"""Sudokus of 9 × 9 cells from files, in the layout of Sudoku-Extreme (Wang et al. 2025, arXiv:2506.21734)."""

import csv
import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, compress
from operator import itemgetter
from pathlib import Path
from typing import ClassVar

import numpy as np

from equilibria.data.batches import Segment
from equilibria.data.sources.base import Split
from equilibria.data.sources.reading import read_pieces
from equilibria.data.tasks.base import HeldOut, SequenceTask
from equilibria.data.tasks.numbering import random_integers
from equilibria.data.tasks.sudoku import Board
from equilibria.data.tokenizers import Tokenizer, digit_tokenizer
from equilibria.errors import UserError
from equilibria.ranges import whole

_BOARD = Board(3, 3)
_CELLS = _BOARD.size**2


@dataclass(frozen=True, kw_only=True)
class SudokuFiles(SequenceTask):
    """Sudokus of 9 × 9 cells from `train.csv` and `test.csv` in a folder.

    The files have a header with the columns `question` and `answer` (`source,question,answer,rating` as published), and
    81 characters in each: digits, and `.` or `0` where none is given. Inputs are the digits, 0 for blanks; targets the
    solution; answers the blanks. Puzzles and answers are read as they are.

    For validation are `held_out` puzzles of `test.csv`; all others of that file are the split `test`. A training puzzle
    that is one of those for validation, by its digest also under a symmetry, is left out; the published files are taken
    to keep `train.csv` and `test.csv` apart.

    Args:
        path: the folder.
        puzzles: of `train.csv`, drawn from all of it; all of them when None. Each pass has them in an order of its own.
        augment: whether each time a training puzzle comes it is shuffled: its digits renamed, its bands, stacks, and
            rows and columns within them in another order, rows perhaps made columns. Held-out ones never are.
        held_out: puzzles for validation.
        seed: of the puzzles that are drawn, and of what shuffles them.

    Raises:
        ValueError: a number outside its range.
        UserError: when used, if a file is missing, damaged or has too few puzzles.
    """

    causal: ClassVar[bool] = False

    path: Path
    puzzles: int | None = None
    augment: bool = True
    held_out: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        whole(1, puzzles=self.puzzles, held_out=self.held_out)
        whole(0, seed=self.seed)

    @property
    def vocabulary_size(self) -> int:
        return _BOARD.size + 1

    @property
    def length(self) -> int:
        return _CELLS

    @property
    def grid(self) -> tuple[int, int]:
        return _BOARD.size, _BOARD.size

    @property
    def count(self) -> int:
        return len(self._all[0])

    @property
    def samples(self) -> int:
        return self._all[1]

    @property
    def name(self) -> str:
        return f"sudokus of {self.path.resolve().name}"

    @property
    def fingerprint(self) -> str:
        """By the puzzles, wherever they are."""
        digest = hashlib.blake2b(self._all[0].tobytes(), digest_size=16).hexdigest()
        return f"sudokus {digest} ({self.held_out}, {self.samples}, {self.augment}, {self.seed})"

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return digit_tokenizer(self.vocabulary_size)

    def splits(self) -> tuple[Split, ...]:
        return ("valid", "test") if self.count > self.held_out + self.samples else ("valid",)

    def split(self, name: Split) -> HeldOut:
        if name != "test" or name not in self.splits():
            return super().split(name)
        return HeldOut(self, range(self.held_out + self.samples, self.count))

    def yardsticks(self, name: Split) -> dict[str, float]:
        numbers = self.split(name).numbers
        return _BOARD.yardsticks(self.segment(np.array(numbers[:10_000])))

    def check_unseen(self, trained: SequenceTask) -> None:
        if isinstance(trained, SudokuFiles) and self.path.resolve() == trained.path.resolve():
            # Fewer for validation would leave the others of them for testing.
            self.check_held_out_of(trained, "seed", "held_out")

    def segment(self, numbers: np.ndarray) -> Segment:
        return _BOARD.segment(*self._all[0][numbers].swapaxes(0, 1))

    def training_segment(self, numbers: np.ndarray, index: int, draws: np.ndarray) -> Segment:
        boards = self._all[0][numbers].astype(np.int64)
        if self.augment:
            boards = _BOARD.shuffled(boards, random_integers(draws, _BOARD.draws, self.seed))
        return _BOARD.segment(*boards.swapaxes(0, 1))

    @cached_property
    def _all(self) -> tuple[np.ndarray, int]:
        """`(N, 2, 81)` puzzles and solutions: for validation, for training, and the others of `test.csv`; and how many
        are for training."""
        others = self._file("test", None)
        if len(others) < self.held_out:
            raise UserError(f"{self.path / 'test.csv'} has {len(others)} puzzles, fewer than held_out, {self.held_out}")
        others = others[np.random.default_rng((self.seed, 1)).permutation(len(others))]
        held = others[: self.held_out]
        training = self._file("train", self.puzzles)
        training = training[~np.isin(_digests(training), _digests(held))]
        if not len(training):
            raise UserError(f"{self.path / 'train.csv'} has no puzzle but those for validation; give it others")
        return np.concatenate([held, training, others[self.held_out :]]), len(training)

    def _file(self, name: str, wanted: int | None) -> np.ndarray:
        """`(N, 2, 81)`: so many puzzles of a file and their answers, drawn from it, or all."""
        path = self.path / f"{name}.csv"
        if wanted is None:
            return _boards(path, _read(path))
        count = sum(1 for _ in _read(path))
        if wanted > count:
            raise UserError(f"{path} has {count} puzzles, fewer than puzzles, {wanted}")
        drawn_lines = np.zeros(count, dtype=bool)
        drawn_lines[np.random.default_rng((self.seed, 0)).choice(count, wanted, replace=False)] = True
        return _boards(path, compress(_read(path), drawn_lines.tolist()))


def _read(path: Path) -> Iterator[tuple[str, str]]:
    """Question and answer of each puzzle."""
    rows = csv.reader(read_pieces(path))
    try:
        header = next(rows, [])
        if not {"question", "answer"} <= set(header):
            raise UserError(f"{path} has no columns question and answer in its first line: {','.join(header)[:80]!r}")
        yield from map(itemgetter(header.index("question"), header.index("answer")), rows)
    except IndexError as problem:
        raise UserError(f"{path}: line {rows.line_num} has fewer columns than the first") from problem
    except csv.Error as problem:
        raise UserError(f"{path} is no CSV file ({problem}); fetch it again") from problem


def _boards(path: Path, rows: Iterable[tuple[str, str]]) -> np.ndarray:
    texts = [*chain.from_iterable(rows)]
    if (wrong := next((text for text in texts if len(text) != _CELLS), None)) is not None:
        raise UserError(f"{path} has a puzzle or an answer of {len(wrong)} characters, not {_CELLS}: {wrong[:99]!r}")
    boards = np.frombuffer("".join(texts).replace(".", "0").encode("ascii", "replace"), np.uint8) - ord("0")
    boards = boards.reshape(-1, 2, _CELLS)
    puzzles, answers = boards.swapaxes(0, 1)
    right = (boards <= _BOARD.size).all(axis=(1, 2)) & (answers > 0).all(axis=1)
    right &= ((puzzles == answers) | (puzzles == 0)).all(axis=1)
    if not right.all():
        number = int(right.argmin())
        found = texts[2 * number : 2 * number + 2]
        raise UserError(f"{path} has a puzzle that is not digits and '.', or whose answer is none: {found}")
    return boards


def _digests(boards: np.ndarray) -> np.ndarray:
    parts = range(0, len(boards), 10_000)  # a digest takes some kilobytes
    return np.concatenate([_BOARD.digest(boards[part : part + 10_000, 0].astype(np.int64)) for part in parts])
