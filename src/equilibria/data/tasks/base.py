"""What a model learns and is measured on: a text, or sequences that are made when they are asked for.

Training, evaluation and reports know a `Task` and nothing below it. A task of one's own whose sequences are made from
their numbers is a `SequenceTask` of four members.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Protocol

import numpy as np

from equilibria.data.batches import Batches, Segment
from equilibria.data.sources.base import Split
from equilibria.data.tokenizers import Tokenizer, id_tokenizer
from equilibria.errors import UserError


class EvaluationSet(Protocol):
    """Something to evaluate a model on."""

    def segments(self, batch_size: int, segment_length: int, max_tokens: int | None = None) -> Iterable[Segment]:
        """One pass in which every target comes once.

        Args:
            batch_size: rows.
            segment_length: tokens per row and segment; unused where sequences are whole.
            max_tokens: where to stop; None reads all.
        """
        ...


class Task(ABC):
    """What a model is trained and evaluated on. A subclass says its `vocabulary_size`, `training` and `split`.

    A frozen dataclass needs no more; any other class overrides `fingerprint`.
    """

    has_source: ClassVar[bool] = False
    """Whether inputs are a source and targets are written after it, in place of the next tokens."""

    @property
    @abstractmethod
    def vocabulary_size(self) -> int:
        """How many tokens a model of it needs."""

    @abstractmethod
    def training(self, batch_size: int, segment_length: int) -> Batches:
        """What to train on; `segment_length` as for `EvaluationSet.segments`.

        Raises:
            UserError: there is too little of it.
        """

    @abstractmethod
    def split(self, name: Split) -> EvaluationSet:
        """What to evaluate on.

        Raises:
            UserError: there is no such split.
        """

    def splits(self) -> tuple[Split, ...]:
        """The splits that there are; `"valid"` always is."""
        return ("valid",)

    def yardsticks(self, name: Split) -> Mapping[str, float]:
        """What a split's figures are compared with, named as in evaluation.json."""
        return {}

    @property
    def name(self) -> str:
        """For messages: that of the class, in words."""
        return re.sub(r"(?<=.)([A-Z])", r" \1", type(self).__name__).lower()

    @property
    def fingerprint(self) -> str:
        """The same for the same data alone; the default is right where the fields of a dataclass say all."""
        return repr(self)

    @property
    def length(self) -> int | None:
        """Positions of a sequence; None for a text, which is read on from segment to segment."""
        return None

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Between text and the model's tokens; by default these are written as numbers."""
        return id_tokenizer(self.vocabulary_size)

    def check(self, vocabulary_size: int) -> None:
        """Checks that a model has all tokens.

        Raises:
            UserError: it has fewer.
        """
        if vocabulary_size < self.vocabulary_size:
            raise UserError(f"{self.name} has {self.vocabulary_size} classes, the model only {vocabulary_size}")


class SequenceTask(Task):
    """Sequences that are made from their numbers: the first `held_out` are for validation, the others for training.

    A subclass says its `vocabulary_size`, `length`, `count` and `segment`. As sequences of different numbers differ, no
    training sequence repeats another before all have been seen, or ever one that is held out.

    Attributes:
        held_out: sequences kept for validation; fewer than there are.
    """

    held_out: int

    @property
    @abstractmethod
    def length(self) -> int:
        """Positions of a sequence."""

    @property
    @abstractmethod
    def count(self) -> int:
        """How many different sequences there are."""

    @abstractmethod
    def segment(self, numbers: np.ndarray) -> Segment:
        """The sequences of these numbers (B,), each from 0 to `count − 1`, one per row."""

    def training(self, batch_size: int, segment_length: int | None = None) -> "SequenceBatches":
        """Batches of whole sequences."""
        return SequenceBatches(self, batch_size)

    def split(self, name: Split) -> "HeldOut":
        """The sequences held out, which are the split `"valid"`."""
        if name != "valid":
            raise UserError(f"{self.name} has no {name} split; it has valid")
        return HeldOut(self)


@dataclass(frozen=True)
class HeldOut:
    """The sequences that a task keeps for validation."""

    task: SequenceTask

    def segments(
        self, batch_size: int, segment_length: int | None = None, max_tokens: int | None = None
    ) -> Iterator[Segment]:
        """One pass over them, whole, or over the first batches: until `max_tokens` targets have come.

        Raises:
            ValueError: `batch_size` is below 1.
        """
        _check_rows(batch_size)
        targets = 0
        for first in range(0, self.task.held_out, batch_size):
            if max_tokens is not None and targets >= max_tokens:
                return
            segment = self.task.segment(np.arange(first, min(first + batch_size, self.task.held_out)))
            targets += segment.targets.numel()
            yield segment


@dataclass(frozen=True)
class SequenceBatches:
    """Training batches of a task by index: resuming needs the index alone.

    Args:
        task: what to make.
        batch_size: sequences per batch.

    Raises:
        ValueError: `batch_size` is below 1.
    """

    task: SequenceTask
    batch_size: int

    def __post_init__(self) -> None:
        _check_rows(self.batch_size)

    def at(self, index: int, rows: Sequence[int] | None = None) -> Segment:
        """The batch of that index, counted from 0; only these of its rows, all when None.

        Raises:
            IndexError: the index is negative.
        """
        if index < 0:
            raise IndexError(f"batch {index}: batches count from 0")
        held_out = self.task.held_out
        drawn = index * self.batch_size + (np.arange(self.batch_size) if rows is None else np.asarray(rows))
        return self.task.segment(held_out + drawn % (self.task.count - held_out))


def _check_rows(batch_size: int) -> None:
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, found {batch_size}")
