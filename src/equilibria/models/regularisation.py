"""Dropouts and penalties around the layers of a model, the same for every model that reads from segment to segment."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from equilibria.nn import dropout_mask, embedding_row_dropout, masked
from equilibria.ranges import at_least, probability


@dataclass(frozen=True)
class Regularisation:
    """The regularisers of AWD-LSTM (Merity et al. 2017, arXiv:1708.02182) and of TrellisNet (Bai et al. 2018,
    arXiv:1810.06682), all off by default. What a layer or a cell drops from itself is an argument of its own.

    Args:
        token_dropout: probability of dropping a token of the vocabulary, wherever it occurs in the batch (Gal and
            Ghahramani 2016, arXiv:1512.05287).
        input_dropout: probability of dropping a feature of the embedded tokens; like the next, one mask for all tokens
            of a row.
        output_dropout: probability of dropping a feature of the final states.
        activation_penalty: weight of the mean square of the dropped final states (AR).
        slowness_penalty: weight of the mean square of the final states' change from token to token (TAR).
    """

    token_dropout: float = 0.0
    input_dropout: float = 0.0
    output_dropout: float = 0.0
    activation_penalty: float = 0.0
    slowness_penalty: float = 0.0

    def __post_init__(self) -> None:
        weights = {name: value for name, value in vars(self).items() if name.endswith("penalty")}
        at_least(0, **weights)
        probability(**{name: value for name, value in vars(self).items() if name not in weights})

    def embedded(self, x_BLD: Tensor, tokens_BL: Tensor, vocabulary_size: int, training: bool) -> Tensor:
        """Embedded tokens, in training with tokens and features dropped."""
        if not training:
            return x_BLD
        x_BLD = embedding_row_dropout(x_BLD, tokens_BL, vocabulary_size, self.token_dropout, training)
        return self._features_dropped(x_BLD, training)

    def featured(self, x_BLD: Tensor, training: bool) -> Tensor:
        """Features of no known tokens, some dropped; a ValueError where tokens of the vocabulary are to be."""
        if training and self.token_dropout:
            raise ValueError(
                f"token_dropout = {self.token_dropout} drops tokens of the vocabulary, and features name none; train "
                f"on token ids, or without it"
            )
        return self._features_dropped(x_BLD, training)

    def _features_dropped(self, x_BLD: Tensor, training: bool) -> Tensor:
        return masked(x_BLD, row_mask(x_BLD, self.input_dropout, training))

    def penalty(self, raw_BLD: Tensor, dropped_BLD: Tensor) -> Tensor | None:
        """The weighted penalties of training, of the final states before and after their dropout; None for none."""
        if not (self.activation_penalty or self.slowness_penalty):
            return None
        penalty = self.activation_penalty * dropped_BLD.square().mean()
        if raw_BLD.shape[1] > 1:
            penalty = penalty + self.slowness_penalty * raw_BLD.diff(dim=1).square().mean()
        return penalty


def row_mask(x_BLD: Tensor, probability: float, training: bool) -> Tensor | None:
    """A dropout mask `(B, 1, D)`, the same for all tokens of a row; None where nothing would be dropped."""
    return dropout_mask(x_BLD[:, :1], probability, training)
