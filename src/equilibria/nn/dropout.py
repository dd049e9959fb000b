"""Dropout whose mask is drawn once and used for as long as its owner keeps it (Gal and Ghahramani 2016,
arXiv:1512.05287). A solve needs one fixed map, so masks live in the context of a solve."""

from __future__ import annotations

import torch
from torch import Tensor


def add_masked(x: Tensor, update: Tensor, mask: Tensor | None) -> Tensor:
    """`x + update ⊙ mask`, in one pass over memory; the mask may be broadcast."""
    return x + update if mask is None else torch.addcmul(x, update, mask)


def dropout_mask(like: Tensor, probability: float, training: bool) -> Tensor | None:
    """A mask of zeros and `1 / (1 − p)` in the shape of `like`; None where nothing would be dropped.

    Raises:
        ValueError: the probability is not at least 0 and below 1.
    """
    if not 0.0 <= probability < 1.0:
        raise ValueError(f"a dropout probability must be at least 0 and below 1, found {probability}")
    if not training or probability == 0.0:
        return None
    keep = 1.0 - probability
    return torch.empty_like(like).bernoulli_(keep).div_(keep)


def masked(x: Tensor, mask: Tensor | None) -> Tensor:
    """`x` times the mask, or `x` itself where there is none."""
    return x if mask is None else x * mask


def drop_connect(weight: Tensor, probability: float, training: bool, keep_norms: bool = False) -> Tensor:
    """A weight with entries dropped (Wan et al. 2013, ICML), or itself where none would be: call it once per solve.

    Args:
        weight: `(outputs, inputs)`.
        probability: of dropping an entry.
        training: nothing is dropped otherwise.
        keep_norms: rescale each row to its norm instead of by `1 / (1 − p)`. For a weight-normalised layer that is
            dropping from the direction and not from the gain, as the published TrellisNets do.
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
    """Drop whole words: every occurrence in the batch of the same token is dropped, or none (Gal and Ghahramani 2016).

    The same as looking tokens up in an embedding with dropped rows, without a copy of the embedding.

    Args:
        embedded_BLD: the embedded tokens.
        tokens_BL: their ids.
        vocabulary_size: number of token ids.
        probability: of dropping a word.
        training: nothing is dropped otherwise.
    """
    mask_V = dropout_mask(embedded_BLD.new_empty(vocabulary_size), probability, training)
    return embedded_BLD if mask_V is None else embedded_BLD * mask_V[tokens_BL].unsqueeze(-1)
