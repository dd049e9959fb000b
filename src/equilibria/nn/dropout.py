"""Dropout with a mask drawn once (Gal and Ghahramani 2016, arXiv:1512.05287): a solve needs one fixed map."""

import torch
from torch import Tensor

from equilibria import ranges


def add_masked(x: Tensor, update: Tensor, mask: Tensor | None) -> Tensor:
    """`x + update ⊙ mask`, in one pass over memory; the mask may be broadcast."""
    return x + update if mask is None else torch.addcmul(x, update, mask)


def dropout_mask(like: Tensor, probability: float, training: bool) -> Tensor | None:
    """A mask of zeros and `1 / (1 − p)` in the shape of `like`; None where nothing would be dropped."""
    ranges.probability(dropout=probability)
    if not training or probability == 0.0:
        return None
    keep = 1.0 - probability
    return torch.empty_like(like).bernoulli_(keep).div_(keep)


def masked(x: Tensor, mask: Tensor | None) -> Tensor:
    """`x` times the mask, or `x` itself where there is none."""
    return x if mask is None else x * mask


def drop_connect(weight: Tensor, probability: float, training: bool, keep_norms: bool = False) -> Tensor:
    """A weight `(outputs, inputs)` with entries dropped (Wan et al. 2013, ICML); call it once per solve.

    `keep_norms` rescales each row to its norm instead of by `1 / (1 − p)`. For a weight-normalised layer that drops
    from the direction and not from the gain, as the published TrellisNets do.
    """
    mask = dropout_mask(weight, probability, training)
    if mask is None:
        return weight
    dropped = weight * mask
    if not keep_norms:
        return dropped
    wanted, found = (torch.linalg.vector_norm(w, dim=1, keepdim=True) for w in (weight, dropped))
    return dropped * (wanted / found.clamp_min(torch.finfo(weight.dtype).tiny))


def embedding_row_dropout(
    embedded_BLD: Tensor, tokens_BL: Tensor, vocabulary_size: int, probability: float, training: bool
) -> Tensor:
    """Embedded tokens with whole words dropped, all occurrences of a token in the batch or none: as if looked up in an
    embedding with dropped rows, without a copy of it."""
    mask_V = dropout_mask(embedded_BLD.new_empty(vocabulary_size), probability, training)
    return embedded_BLD if mask_V is None else embedded_BLD * mask_V[tokens_BL].unsqueeze(-1)
