"""What a model learns and is measured on: a text, or sequences made on demand.

Training, evaluation and reports know only a `Task`. Your own task whose sequences are made from their numbers is a
`SequenceTask` with four members.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import ClassVar, Protocol

import numpy as np
import torch

from equilibria.data.batches import NO_TARGET, Batches, Segment
from equilibria.data.sources.base import Split
from equilibria.data.tokenizers import Tokenizer, id_tokenizer
from equilibria.errors import UserError
from equilibria.ranges import whole


class EvaluationSet(Protocol):
    """Something to evaluate a model on."""

    def segments(self, batch_size: int, segment_length: int, max_tokens: int | None = None) -> Iterable[Segment]:
        """One pass over every target, or over about `max_tokens`; whole sequences ignore `segment_length`."""
        ...


class Task(ABC):
    """What a model is trained and evaluated on. A subclass has `vocabulary_size`, `training` and `split`, and a
    `fingerprint` unless it is a frozen dataclass."""

    has_source: ClassVar[bool] = False
    """Whether targets are written by a decoder after a source, the inputs, all of which they may rest on."""
    continues: ClassVar[bool] = True
    """Whether each target is the input after it, as in a text, so that a model goes on by reading what it wrote."""
    causal: ClassVar[bool] = True
    """Whether no target rests on a later input, or all follow a source; False where one may rest on any input, which a
    causal model has not seen."""

    @property
    @abstractmethod
    def vocabulary_size(self) -> int:
        """How many tokens a model needs."""

    @abstractmethod
    def training(self, batch_size: int, segment_length: int) -> Batches:
        """What to train on; a UserError if it is too short."""

    @abstractmethod
    def split(self, name: Split) -> EvaluationSet:
        """What to evaluate on; a UserError if there is no such split."""

    def splits(self) -> tuple[Split, ...]:
        """The splits that exist, always with `"valid"`."""
        return ("valid",)

    def yardsticks(self, name: Split) -> Mapping[str, float]:
        """What a split's figures are compared with, named as in evaluation.json."""
        return {}

    @property
    def name(self) -> str:
        """For messages; by default that of the class, in words."""
        return re.sub(r"(?<=.)([A-Z])", r" \1", type(self).__name__).lower()

    @property
    def fingerprint(self) -> str:
        """Identifies the data; by default by the fields of a dataclass. A UserError for another class that has none."""
        if type(self).__repr__ is object.__repr__:
            raise UserError(f"{type(self).__name__} has no fingerprint; define it, or make the task a frozen dataclass")
        return repr(self)

    @property
    def length(self) -> int | None:
        """Positions of a sequence; None for a text, which continues from segment to segment."""
        return None

    @property
    def grid(self) -> tuple[int, int] | None:
        """Rows and columns of the grid whose cells, row by row, are the positions; None where there is no grid."""
        return None

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Between text and the model's tokens; by default numbers."""
        return id_tokenizer(self.vocabulary_size)

    def check(self, vocabulary_size: int) -> None:
        """Raises a UserError if a model has too few tokens."""
        if vocabulary_size < self.vocabulary_size:
            raise UserError(f"{self.name} has {self.vocabulary_size} classes, the model only {vocabulary_size}")


class SequenceTask(Task):
    """Sequences made from their numbers: the first `held_out` are for validation, the others for training.

    A subclass has `vocabulary_size`, `length`, `count` and `segment`. Different numbers make different sequences:
    training repeats none before it has seen all, and never sees a held-out one. Where `samples` limits them, each pass
    has them in an order of its own.
    """

    continues: ClassVar[bool] = False
    held_out: int
    """Sequences kept for validation; fewer than there are."""

    @property
    @abstractmethod
    def length(self) -> int:
        """Positions of a sequence."""

    @property
    @abstractmethod
    def count(self) -> int:
        """How many different sequences there are."""

    @property
    def samples(self) -> int | None:
        """Training sequences, the first after those held out; None for all."""
        return None

    @abstractmethod
    def segment(self, numbers: np.ndarray) -> Segment:
        """The sequences of these numbers (B,), each from 0 to `count − 1`, one per row."""

    def training_segment(self, numbers: np.ndarray, index: int, draws: np.ndarray) -> Segment:
        """The same for the training batch of an index, where that looks otherwise. `draws` (B,) count, for each row,
        the training sequences before it."""
        del index, draws
        return self.segment(numbers)

    def check_unseen(self, trained: "SequenceTask") -> None:
        """Raises a UserError where a sequence held out here may be in the training of `trained`, if that is another
        size of this task.

        By default sequences of another length are others, and those of the same length have to be held out in both.
        """
        if not isinstance(trained, type(self)) or self.length != trained.length:
            return
        self.check_held_out_of(trained)
        numbers = np.arange(self.held_out)
        if not torch.equal(self.segment(numbers).inputs, trained.segment(numbers).inputs):
            raise UserError(
                f"other sequences would be held out than in training, and may have been trained on; give "
                f"{self.name} the options it was trained with, or another length"
            )

    def check_held_out_of(self, trained: "SequenceTask", *options: str) -> None:
        """Raises a UserError for more held-out sequences than those of `trained`, or where one of the options that
        decide which they are is another."""
        for option in options:
            found, expected = getattr(self, option), getattr(trained, option)
            if found != expected:
                raise UserError(
                    f"{option} = {found}: other sequences would be held out than in training, with {option} = "
                    f"{expected}, and may have been trained on; give {expected}"
                )
        if self.held_out > trained.held_out:
            raise UserError(
                f"held_out = {self.held_out}: all sequences but the first {trained.held_out} may have been trained "
                f"on; give at most {trained.held_out}"
            )

    def training(self, batch_size: int, segment_length: int | None = None) -> "SequenceBatches":
        self.check_count()
        return SequenceBatches(self, batch_size)

    def check_count(self) -> None:
        """Raises a UserError where `held_out` or `samples` is more than there is."""
        if not 2 <= self.count < 2**63:
            raise UserError(f"{self.name} has {self.count} sequences: expected from 2 to 2**63 - 1")
        if not 1 <= self.held_out < self.count:
            raise UserError(f"held_out must be between 1 and {self.count - 1}, found {self.held_out}")
        others = self.count - self.held_out
        if self.samples is not None and not 1 <= self.samples <= others:
            raise UserError(f"samples must be between 1 and {others}, found {self.samples}")

    def split(self, name: Split) -> "HeldOut":
        self.check_count()
        if name != "valid":
            there = ", ".join(self.splits())
            raise UserError(f"{self.name} has no {name} split; it has {there}")
        return HeldOut(self, range(self.held_out))


@dataclass(frozen=True)
class HeldOut:
    """The sequences of a task that it is not trained on, by their numbers."""

    task: SequenceTask
    numbers: range

    def segments(
        self, batch_size: int, segment_length: int | None = None, max_tokens: int | None = None
    ) -> "HeldOutPass":
        """One pass, or its first batches, until `max_tokens` targets have come."""
        whole(1, batch_size=batch_size)
        return HeldOutPass(self, batch_size, max_tokens)


@dataclass(frozen=True)
class HeldOutPass:
    """The batches of one pass; fewer than its length where `max_tokens` ends it."""

    sequences: HeldOut
    batch_size: int
    max_tokens: int | None

    def __len__(self) -> int:
        return -(-len(self.sequences.numbers) // self.batch_size)

    def __iter__(self) -> Iterator[Segment]:
        task, numbers, targets = self.sequences.task, self.sequences.numbers, 0
        for first in range(0, len(numbers), self.batch_size):
            if self.max_tokens is not None and targets >= self.max_tokens:
                return
            segment = task.segment(np.array(numbers[first : first + self.batch_size]))
            targets += int((segment.targets != NO_TARGET).sum())
            yield segment


@dataclass(frozen=True)
class SequenceBatches:
    """`Batches` of a task; raises ValueError for a `batch_size` below 1."""

    task: SequenceTask
    batch_size: int

    def __post_init__(self) -> None:
        whole(1, batch_size=self.batch_size)

    def at(self, index: int, rows: Sequence[int] | None = None) -> Segment:
        """As `Batches.at`; raises IndexError for a negative index."""
        if index < 0:
            raise IndexError(f"batch {index}: batches count from 0")
        held_out, samples = self.task.held_out, self.task.samples
        draws = index * self.batch_size + (np.arange(self.batch_size) if rows is None else np.asarray(rows))
        if samples is None:
            places = draws % (self.task.count - held_out)
        else:
            passes, places = np.divmod(draws, samples)
            for number in np.unique(passes):
                places[passes == number] = _shuffled(samples, int(number))[places[passes == number]]
        return self.task.training_segment(held_out + places, index, draws)


@lru_cache(maxsize=2)  # a batch may end one pass and begin the next
def _shuffled(samples: int, number: int) -> np.ndarray:
    """The order of the samples in a pass."""
    return np.random.default_rng((samples, number)).permutation(samples)
