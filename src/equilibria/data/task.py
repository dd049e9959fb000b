"""What a model learns and is measured on. A text that is read on from segment to segment and sequences that are made
when they are asked for are the same to training, evaluation and reports."""

from collections.abc import Iterable, Mapping
from typing import Protocol

from equilibria.data.batching import Batches, Segment
from equilibria.data.corpus import Split
from equilibria.data.tokenizers import Tokenizer


class Readable(Protocol):
    """Something to evaluate a model on."""

    def segments(self, batch_size: int, segment_length: int, max_tokens: int | None = None) -> Iterable[Segment]:
        """One pass in which every target comes once.

        Args:
            batch_size: rows.
            segment_length: tokens of a row and segment; without a meaning where sequences are whole.
            max_tokens: where to stop; None reads all.
        """
        ...


class Task(Protocol):
    """What a model is trained and evaluated on."""

    @property
    def name(self) -> str:
        """For messages."""
        ...

    @property
    def tokenizer(self) -> Tokenizer:
        """Between text and the model's tokens."""
        ...

    @property
    def fingerprint(self) -> str:
        """The same for the same data alone."""
        ...

    def training(self, batch_size: int, segment_length: int) -> Batches:
        """What to train on; `segment_length` as for `Readable.segments`.

        Raises:
            UserError: there is too little of it.
        """
        ...

    def splits(self) -> tuple[Split, ...]:
        """The splits that there are; `"valid"` always is."""
        ...

    def split(self, name: Split) -> Readable:
        """What to evaluate on.

        Raises:
            UserError: there is no such split.
        """
        ...

    def yardsticks(self, name: Split) -> Mapping[str, float]:
        """What a split's figures are measured by, named as in evaluation.json."""
        ...

    def check(self, vocabulary_size: int) -> None:
        """Checks that every token is in a model's vocabulary.

        Raises:
            UserError: one is not.
        """
        ...
