"""Dropouts and penalties around the layers of a model, the same for every model that reads from segment to segment."""

from __future__ import annotations

from dataclasses import dataclass, fields

from torch import Tensor

from equilibria.nn import dropout_mask, embedding_row_dropout, masked


@dataclass(frozen=True)
class Regularisation:
    """The regularisers of AWD-LSTM (Merity et al. 2017, arXiv:1708.02182) and of TrellisNet (Bai et al. 2018,
    arXiv:1810.06682), all off by default. What a layer or a cell drops from itself is an argument of its own.

    Args:
        tokens: probability of dropping a token id, wherever it occurs in the batch (Gal and Ghahramani 2016,
            arXiv:1512.05287).
        inputs: of a feature of the embedded input; like the next, one mask for all tokens of a row.
        output: of a feature of the final states.
        activation: weight of the mean square of the dropped final states (AR).
        slowness: weight of the mean square of the final states' change from token to token (TAR).
    """

    tokens: float = 0.0
    inputs: float = 0.0
    output: float = 0.0
    activation: float = 0.0
    slowness: float = 0.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value, weight = getattr(self, field.name), field.name in ("activation", "slowness")
            if not value >= 0 or not (weight or value < 1):
                raise ValueError(f"{field.name} must be at least 0{'' if weight else ' and below 1'}, found {value}")

    def embedded(self, x_BLD: Tensor, tokens_BL: Tensor, vocabulary_size: int, training: bool) -> Tensor:
        """Embedded tokens with tokens and features dropped."""
        x_BLD = embedding_row_dropout(x_BLD, tokens_BL, vocabulary_size, self.tokens, training)
        return masked(x_BLD, row_mask(x_BLD, self.inputs, training))

    def penalty(self, raw_BLD: Tensor, dropped_BLD: Tensor) -> Tensor | None:
        """The weighted penalties of training, of the final states before and after their dropout; None for none."""
        if not (self.activation or self.slowness):
            return None
        penalty = self.activation * dropped_BLD.square().mean()
        if raw_BLD.shape[1] > 1:
            penalty = penalty + self.slowness * raw_BLD.diff(dim=1).square().mean()
        return penalty


def row_mask(x_BLD: Tensor, probability: float, training: bool) -> Tensor | None:
    """A dropout mask `(B, 1, D)`, the same for all tokens of a row; None where nothing would be dropped."""
    return dropout_mask(x_BLD[:, :1], probability, training)
