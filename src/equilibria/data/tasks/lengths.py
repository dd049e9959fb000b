"""Sequences of any length: read from left to right, trained at one or several lengths and evaluated at another."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from equilibria.data.batches import Segment
from equilibria.data.tasks.base import SequenceTask
from equilibria.errors import UserError
from equilibria.ranges import above, at_least, whole


@dataclass(frozen=True, kw_only=True)
class VariableLengthTask(SequenceTask):
    """Sequences of which a longer one of the same number begins with the shorter.

    A subclass has `vocabulary_size`, `count` and `sequences`.

    Args:
        length: positions of a sequence.
        shortest: of the sequences of a training batch, whose length is drawn for it from here to `length`; `length`
            itself when None.
        staying: first training batches, whose sequences all have the length `shortest`.
        growing: training batches after those in which the longest sequence grows from `shortest` to `length`; none of
            them when None.
        growth_power: the longest grows with this power of the share of these batches that are done; above 1 slowly at
            first, where a model still has to learn what it will only repeat in longer ones.
        valid_length: of the sequences for validation; `length` when None.
        held_out: sequences kept for validation. No sequence of training is one of them; of a length not below the
            shorter of `length` and `valid_length`, none begins like one of them.
        samples: training sequences, in an order of its own for each pass; all when None.
        seed: of the order of the sequences; another seed holds out others.

    Raises:
        ValueError: a number outside its range.
    """

    fewest: ClassVar[int] = 1
    """Positions of a sequence, at least."""

    length: int = 16  # pyright: ignore[reportIncompatibleMethodOverride]
    shortest: int | None = None
    staying: int = 0
    growing: int | None = None
    growth_power: float = 1.0
    valid_length: int | None = None
    held_out: int = 256
    samples: int | None = None  # pyright: ignore[reportIncompatibleMethodOverride]
    seed: int = 0

    def __post_init__(self) -> None:
        at_least(self.fewest, length=self.length, shortest=self.shortest, valid_length=self.valid_length)
        whole(1, growing=self.growing)
        whole(0, seed=self.seed, staying=self.staying)
        above(0, growth_power=self.growth_power)
        if self.shortest is not None and self.shortest > self.length:
            raise ValueError(f"shortest = {self.shortest}: expected at most length, {self.length}")
        for name, batches in (("staying", self.staying or None), ("growing", self.growing)):
            if batches is not None and self.shortest is None:
                raise ValueError(f"{name} = {batches} needs a length to begin with; give shortest")
        if self.growth_power != 1.0 and self.growing is None:
            raise ValueError(f"growth_power = {self.growth_power} needs lengths that grow; give growing")
        self.check_count()

    @abstractmethod
    def sequences(self, numbers: np.ndarray, length: int) -> Segment:
        """The sequences of these numbers (B,) at a length; numbers differ within the first `told_apart` positions."""

    @property
    def validated(self) -> int:
        """Positions of a sequence for validation."""
        return self.length if self.valid_length is None else self.valid_length

    @property
    def told_apart(self) -> int:
        """Positions within which all sequences differ."""
        return min(self.length, self.validated)

    def check_unseen(self, trained: SequenceTask) -> None:
        if not isinstance(trained, type(self)) or self.vocabulary_size != trained.vocabulary_size:
            return
        if self.count != trained.count:
            raise UserError(
                f"the shorter of length and valid_length is {self.told_apart}, and was {trained.told_apart} in "
                f"training: other sequences would be held out, and may have been trained on; give "
                f"{trained.told_apart}"
            )
        self.check_held_out_of(trained, "seed")

    def segment(self, numbers: np.ndarray) -> Segment:
        return self.sequences(numbers, self.validated)

    def training_segment(self, numbers: np.ndarray, index: int, draws: np.ndarray) -> Segment:
        if self.shortest is None:
            return self.sequences(numbers, self.length)
        grown = 1.0 if self.growing is None else min(1.0, max(0, index - self.staying) / self.growing)
        longest = self.shortest
        if index >= self.staying:
            longest += round((self.length - self.shortest) * grown**self.growth_power)
        length = np.random.default_rng((self.seed, index)).integers(self.shortest, longest, endpoint=True)
        return self.sequences(numbers, int(length))
