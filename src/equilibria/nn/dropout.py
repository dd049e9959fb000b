"""Dropout whose mask is drawn once and used for as long as its owner keeps it (Gal and Ghahramani 2016,
arXiv:1512.05287). A solve needs one fixed map, so masks live in the context of a solve."""

from __future__ import annotations

import torch
from torch import Tensor


def add_masked(x: Tensor, update: Tensor, mask: Tensor | None) -> Tensor:
    """`x + update ⊙ mask`, in one pass over memory; the mask may be broadcast."""
    return x + update if mask is None else torch.addcmul(x, update, mask)


def dropout_mask(like: Tensor, probability: float, training: bool) -> Tensor | None:
    """A mask of zeros and `1 / (1 − p)` in the shape of `like`; None where nothing would be dropped."""
    if not training or probability == 0.0:
        return None
    keep = 1.0 - probability
    return torch.empty_like(like).bernoulli_(keep).div_(keep)


def masked(x: Tensor, mask: Tensor | None) -> Tensor:
    """`x` times the mask, or `x` itself where there is none."""
    return x if mask is None else x * mask
