"""Random tokens that cost a model what words would."""

from collections.abc import Sequence

import torch

from equilibria.data.batching import Segment


class WordLike:
    """Random batches whose tokens are about as unequally frequent as words (Zipf 1935): the number of a token is as
    likely between 1 and 10 as between 10 and 100. An adaptive softmax costs what it would on text.

    Args:
        vocabulary_size: tokens, the most frequent first.
        batch_size: rows.
        segment_length: tokens of each.
        seed: of the draws.
    """

    def __init__(self, vocabulary_size: int, batch_size: int, segment_length: int, seed: int = 0) -> None:
        self._vocabulary_size, self._shape, self._seed = vocabulary_size, (batch_size, segment_length + 1), seed

    def at(self, index: int, rows: Sequence[int] | None = None) -> Segment:
        """The batch of that index, going on from the one before; the rows of these numbers alone, all when None."""
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + index)
        rank = (self._vocabulary_size + 1) ** torch.rand(self._shape, generator=generator, dtype=torch.float64)
        tokens = (rank.long() - 1).clamp(max=self._vocabulary_size - 1)  # since a power may be rounded up
        tokens = tokens if rows is None else tokens[list(rows)]
        return Segment(tokens[:, :-1], tokens[:, 1:], starts=index == 0)
