"""Segments by index, which a model trains on, and those of a text: each row continues from one segment to the next."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from equilibria.errors import UserError

NO_TARGET = -100  # what `torch.nn.functional.cross_entropy` ignores by default

_GOLDEN = 0x9E3779B97F4A7C15  # 2^64 over the golden ratio: its multiples spread evenly over 64 bits


@dataclass(frozen=True)
class Segment:
    """One step's tokens.

    Attributes:
        inputs: (B, L) int64.
        targets: (B, L) int64, the token after each input; -100 if there is none to predict.
        starts: whether a pass over the text begins here, so that memory of the last segment must be dropped.
        answers: (B, L) booleans, the targets whose accuracy is reported; None for none.
    """

    inputs: Tensor
    targets: Tensor
    starts: bool
    answers: Tensor | None = None


class Batches(Protocol):
    """An endless supply of segments, each a pure function of its index, which is all a resumed run needs."""

    def at(self, index: int, rows: Sequence[int] | None = None) -> Segment:
        """The segment at an index from 0 on, over all passes; only the given rows, all when None."""
        ...


class TrainingStream:
    """`Batches` of a text, cut into `batch_size` rows that are read side by side.

    Every pass shifts where the rows begin, so that segments and the few unused tokens at the ends differ.

    Raises:
        UserError: a size below 1, or fewer than `batch_size * segment_length + 1` tokens.
    """

    def __init__(self, tokens: np.ndarray, batch_size: int, segment_length: int) -> None:
        _check_sizes(batch_size=batch_size, segment_length=segment_length)
        needed = batch_size * segment_length + 1
        if len(tokens) < needed:
            raise UserError(
                f"{len(tokens)} tokens are too few for batch_size {batch_size} times segment_length "
                f"{segment_length} ({needed} needed); make one of them smaller or give more text"
            )
        self._tokens, self._batch_size, self._segment_length = tokens, batch_size, segment_length
        # If the text allows it, one segment's length stays free, for room to shift.
        self._segments = max(1, (len(tokens) - segment_length) // (batch_size * segment_length))

    def __len__(self) -> int:
        return self._segments

    def at(self, index: int, rows: Sequence[int] | None = None) -> Segment:
        """As `Batches.at`; raises IndexError for a negative index."""
        if index < 0:
            raise IndexError(f"segment {index}: segments count from 0")
        number, place = divmod(index, self._segments)
        row_length = self._segments * self._segment_length
        room = len(self._tokens) - self._batch_size * row_length  # offsets that leave a last target
        offset = ((number * _GOLDEN) % 2**64 * room) >> 64
        numbers = np.arange(self._batch_size) if rows is None else np.asarray(rows)
        starts = offset + place * self._segment_length + row_length * numbers
        inputs, targets = _gather(self._tokens, starts, self._segment_length)
        return Segment(inputs, targets, starts=place == 0)


class EvaluationStream:
    """One pass over a text in which every token but the first is a target exactly once.

    Each row has a contiguous run of targets; their lengths differ by at most one. A row's first token has no context:
    `batch_size` 1 gives every token all that precedes it. The last segment may be shorter; a text of fewer targets than
    `batch_size` has fewer rows.

    Raises:
        UserError: a size below 1, or fewer than 2 tokens.
    """

    def __init__(self, tokens: np.ndarray, batch_size: int, segment_length: int) -> None:
        _check_sizes(batch_size=batch_size, segment_length=segment_length)
        if len(tokens) < 2:
            raise UserError(f"a text of {len(tokens)} tokens has nothing to predict; give 2 tokens or more")
        self._tokens, self._segment_length = tokens, segment_length
        rows = min(batch_size, self.targets)
        edges = np.arange(rows + 1) * self.targets // rows
        self._starts = edges[:-1]
        self._lengths = np.diff(edges)

    @property
    def targets(self) -> int:
        """How many targets a pass has: one fewer than tokens."""
        return len(self._tokens) - 1

    def __len__(self) -> int:
        return -(-int(self._lengths.max()) // self._segment_length)

    def __iter__(self) -> Iterator[Segment]:
        longest = int(self._lengths.max())
        for begin in range(0, longest, self._segment_length):
            length = min(self._segment_length, longest - begin)
            inputs, targets = _gather(self._tokens, self._starts + begin, length)
            # A shorter row's spare input is that row's last target: a true token, with nothing to predict.
            spare = torch.from_numpy(begin + np.arange(length) >= self._lengths[:, None])
            yield Segment(inputs, targets.masked_fill(spare, NO_TARGET), starts=begin == 0)


class ZipfBatches:
    """Random batches of Zipf-distributed tokens (Zipf 1935), which cost a model, also with an adaptive softmax, what
    words would. The most frequent token is 0: a rank is as likely between 1 and 10 as between 10 and 100."""

    def __init__(self, vocabulary_size: int, batch_size: int, segment_length: int, seed: int = 0) -> None:
        self._vocabulary_size, self._shape, self._seed = vocabulary_size, (batch_size, segment_length + 1), seed

    def at(self, index: int, rows: Sequence[int] | None = None) -> Segment:
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + index)
        rank = (self._vocabulary_size + 1) ** torch.rand(self._shape, generator=generator, dtype=torch.float64)
        tokens = (rank.long() - 1).clamp(max=self._vocabulary_size - 1)  # since a power may be rounded up
        tokens = tokens if rows is None else tokens[list(rows)]
        return Segment(tokens[:, :-1], tokens[:, 1:], starts=index == 0)


def check_tokens(tokens: np.ndarray, vocabulary_size: int) -> None:
    """Raises a UserError that names the first id outside [0, vocabulary_size) and its position."""
    if len(tokens) == 0 or (int(tokens.min()) >= 0 and int(tokens.max()) < vocabulary_size):
        return
    position = int(np.argmax((tokens < 0) | (tokens >= vocabulary_size)))
    raise UserError(
        f"token id {int(tokens[position])} at position {position} is outside the vocabulary of "
        f"{vocabulary_size}; the text must be encoded by the model's own tokenizer"
    )


def _check_sizes(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise UserError(f"{name} must be at least 1, found {size}")


def _gather(tokens: np.ndarray, starts: np.ndarray, length: int) -> tuple[Tensor, Tensor]:
    """Inputs and targets (rows, length), int64, of the runs that begin at `starts`."""
    # A shorter row of an evaluation may reach one past the text; that target is masked.
    places = np.minimum(starts[:, None] + np.arange(length + 1), len(tokens) - 1)
    run = torch.from_numpy(tokens[places].astype(np.int64))
    return run[:, :-1].contiguous(), run[:, 1:].contiguous()
