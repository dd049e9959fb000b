"""Files of sudokus in the layout of Sudoku-Extreme."""

from pathlib import Path

import numpy as np

from equilibria.data.tasks.sudoku import Board

BOARD = Board(3, 3)


def boards(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Puzzles with any number of solutions, and one of these."""
    row, column = np.divmod(np.arange(81), 9)
    solution = np.tile(1 + (3 * (row % 3) + row // 3 + column) % 9, (count, 1))
    generator = np.random.default_rng(seed)
    puzzles = np.where(generator.random((count, 81)) < 0.3, solution, 0)
    both = np.stack([puzzles, solution], axis=1)
    return tuple(BOARD.shuffled(both, generator.integers(0, 2**62, (count, BOARD.draws))).swapaxes(0, 1))


def line(number: int, puzzle: np.ndarray, answer: np.ndarray) -> str:
    """Blanks as in the published files, or as others have them."""
    question, solution = ("".join(map(str, cells)) for cells in (puzzle, answer))
    return f"made_{number},{question.replace('0', '.') if number % 2 else question},{solution},{number}"


def write(folder: Path, name: str, puzzles: np.ndarray, answers: np.ndarray) -> None:
    lines = [line(number, *pair) for number, pair in enumerate(zip(puzzles, answers, strict=True))]
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.csv").write_text("\n".join(["source,question,answer,rating", *lines]) + "\n")
