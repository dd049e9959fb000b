"""Puzzles drawn at random, the splits of which are kept apart by a digest of each."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from equilibria.data.batches import Segment
from equilibria.data.tasks.base import SequenceBatches, SequenceTask
from equilibria.errors import UserError
from equilibria.ranges import whole

_SHARE = 8  # one of so many digests is that of a puzzle for validation
_MOST_DRAWS = 5000


@dataclass(frozen=True, kw_only=True)
class DrawnTask(SequenceTask):
    """Puzzles drawn from their numbers. Each split has the puzzles of certain digests, and a puzzle has the digest of
    those that a symmetry makes of it: none of training is one of validation, turned around or not. Within a split a
    puzzle may come twice.

    A subclass has `vocabulary_size`, `grid`, `drawn`, `digest`, `solved` and `answers`.

    Args:
        held_out: puzzles for validation.
        samples: training puzzles, in an order of its own for each pass; as many as are asked for when None.
        seed: of the puzzles. The same ones are held out with every seed, if they are drawn.

    Raises:
        ValueError: a number outside its range.
        UserError: when used, if hardly any puzzle can be drawn as the options want it.
    """

    causal: ClassVar[bool] = False

    held_out: int = 1000
    samples: int | None = None  # pyright: ignore[reportIncompatibleMethodOverride]
    seed: int = 0

    def __post_init__(self) -> None:
        whole(1, held_out=self.held_out, samples=self.samples)
        whole(0, seed=self.seed)
        self.check_count()

    @property
    def length(self) -> int:
        return self.grid[0] * self.grid[1]

    @property
    @abstractmethod
    def grid(self) -> tuple[int, int]: ...

    @property
    def count(self) -> int:
        return 2**40

    @abstractmethod
    def drawn(self, numbers: np.ndarray) -> np.ndarray:
        """A puzzle for each number: inputs, `(B, length)` int64."""

    @abstractmethod
    def digest(self, puzzles: np.ndarray) -> np.ndarray:
        """`(B,)` integers from 0, the same for puzzles that a symmetry takes to each other."""

    @abstractmethod
    def solved(self, puzzles: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        """The solutions of the puzzles that are drawn for the numbers: targets, `(B, length)` int64."""

    @abstractmethod
    def answers(self, puzzles: np.ndarray) -> np.ndarray:
        """What has to be found, `(B, length)`: the targets whose accuracy is reported."""

    def sound(self, puzzles: np.ndarray) -> np.ndarray:
        """Which puzzles have one solution, `(B,)`."""
        return np.ones(len(puzzles), dtype=bool)

    def check_unseen(self, trained: SequenceTask) -> None:
        """Digests decide, of every size and with every seed."""

    def training(self, batch_size: int, segment_length: int | None = None) -> SequenceBatches:
        self.segment(np.array([0, self.held_out]))  # an error before the first step if a split has none
        return super().training(batch_size, segment_length)

    def segment(self, numbers: np.ndarray) -> Segment:
        puzzles = np.empty((len(numbers), self.length), dtype=np.int64)
        held, keys, left = numbers < self.held_out, numbers.copy(), np.arange(len(numbers))
        for _ in range(_MOST_DRAWS):
            puzzles[left] = found = self.drawn(keys[left])
            fits = (self.digest(found) % _SHARE == 0) == held[left]
            fits[fits] = self.sound(found[fits])
            left = left[~fits]
            if not len(left):
                return Segment(
                    inputs=torch.from_numpy(puzzles),
                    targets=torch.from_numpy(self.solved(puzzles, keys)),
                    starts=True,
                    answers=torch.from_numpy(self.answers(puzzles)),
                )
            keys[left] += self.count
        raise UserError(
            f"{self.name}: none of {_MOST_DRAWS} puzzles drawn is one for its split; too few differ, or hardly any has "
            f"one solution: give it other sizes"
        )
