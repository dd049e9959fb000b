"""Mazes: the way through one is what is left of it when all dead ends are filled."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from equilibria.data.sources.base import Split
from equilibria.data.tasks.drawn import DrawnTask
from equilibria.data.tasks.numbering import drawn, hashed
from equilibria.data.tokenizers import Tokenizer, digit_tokenizer
from equilibria.data.yardsticks import frequencies

_WALL, _FREE, _START, _GOAL = range(4)
_SMALLEST, _LARGEST = 5, 99


@dataclass(frozen=True, kw_only=True)
class Maze(DrawnTask):
    """The way from the start of a maze to its goal.

    Rooms are at every second row and column from the first on. What joins them is a tree, drawn by Kruskal's algorithm
    (1956) with random weights, so there is one way. Inputs, row by row: 0 for a wall, 1 for free, 2 for the start and 3
    for the goal, which are rooms; there is no wall around the maze. Targets: 1 on the way, its ends included, 0
    elsewhere. Answers are the free places but the two ends.

    Mazes that are turned or reflected, or have start and goal exchanged, are in the same split.

    Args:
        height, width: places, walls included; odd, 5 to 99.
    """

    height: int = 11
    width: int = 11

    def __post_init__(self) -> None:
        for name, size in (("height", self.height), ("width", self.width)):
            if not _SMALLEST <= size <= _LARGEST or size % 2 == 0:
                raise ValueError(f"{name} must be odd, from {_SMALLEST} to {_LARGEST}, found {size}")
        super().__post_init__()

    @property
    def vocabulary_size(self) -> int:
        return 4

    @property
    def grid(self) -> tuple[int, int]:
        return self.height, self.width

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return digit_tokenizer(4)

    @property
    def name(self) -> str:
        return f"maze of {self.height} × {self.width}"

    def yardsticks(self, name: Split) -> dict[str, float]:
        """Of who knows how many of the free places are on the way: loss, and share of right answers."""
        return frequencies(self.segment(np.arange(self.held_out)))

    def drawn(self, numbers: np.ndarray) -> np.ndarray:
        rooms, doors, ends = self._plan
        # Weights of the doors, and two different rooms.
        draws = drawn(numbers, len(doors) + 2, self.seed)
        start = draws[:, -1] % len(rooms)
        goal = (start + 1 + draws[:, -2] % (len(rooms) - 1)) % len(rooms)
        row = np.arange(len(numbers))
        puzzles = np.full((len(numbers), self.length), _WALL)
        puzzles[:, rooms] = _FREE
        tree = np.tile(np.arange(len(rooms), dtype=np.int16), (len(numbers), 1))  # that a room is part of
        for door in draws[:, :-2].argsort(axis=1).T:
            one, other = (tree[row, end] for end in ends[door].T)
            opens = np.flatnonzero(one != other)
            puzzles[opens, doors[door[opens]]] = _FREE
            np.copyto(tree, one[:, None], where=tree == other[:, None])
        puzzles[row, rooms[start]], puzzles[row, rooms[goal]] = _START, _GOAL
        return puzzles

    def digest(self, puzzles: np.ndarray) -> np.ndarray:
        images = self._images
        free, end = (hashed(0, kind, images) for kind in (_FREE, _START))
        of_images = (puzzles > _WALL) @ free + (puzzles > _FREE) @ end
        return hashed(0, _GOAL, hashed(0, _WALL, of_images).sum(axis=1))

    def solved(self, puzzles: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        mazes = np.ascontiguousarray(puzzles.T, dtype=np.uint8).reshape(*self.grid, -1)  # rows of memory are long
        way, ends = np.pad(mazes > _WALL, ((1, 1), (1, 1), (0, 0))).astype(np.uint8), mazes > _FREE
        inner = way[1:-1, 1:-1]
        while True:
            ways = way[2:, 1:-1] + way[:-2, 1:-1] + way[1:-1, 2:] + way[1:-1, :-2]
            left = inner & (ends | (ways > 1))
            if (left == inner).all():
                return np.ascontiguousarray(left.reshape(self.length, -1).T, dtype=np.int64)
            inner[:] = left

    def answers(self, puzzles: np.ndarray) -> np.ndarray:
        return puzzles == _FREE

    @cached_property
    def _images(self) -> np.ndarray:
        """`(length, 4 or 8)`: the place that each has in a maze that is turned or reflected."""
        places = np.arange(self.length).reshape(self.grid)
        images = [places, places.T] if self.height == self.width else [places]
        flipped = [flip for image in images for flip in (image, image[::-1], image[:, ::-1], image[::-1, ::-1])]
        return np.stack([image.ravel() for image in flipped], axis=1)

    @cached_property
    def _plan(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Places of the rooms and of the doors between them, and the two rooms of each door."""
        places = np.arange(self.length).reshape(self.grid)
        number = np.arange((self.height + 1) // 2 * ((self.width + 1) // 2)).reshape(-1, (self.width + 1) // 2)
        across = np.stack([number[:, :-1].ravel(), number[:, 1:].ravel()], axis=1)
        down = np.stack([number[:-1].ravel(), number[1:].ravel()], axis=1)
        doors = np.concatenate([places[::2, 1::2].ravel(), places[1::2, ::2].ravel()])
        return places[::2, ::2].ravel(), doors, np.concatenate([across, down])
