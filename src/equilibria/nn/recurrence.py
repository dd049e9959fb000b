"""A linear recurrence over time, solved token by token: elementwise work, little beside a cell's matrix products."""

from __future__ import annotations

import torch
from torch import Tensor


def linear_recurrence(decay_BLC: Tensor, addition_BLC: Tensor, history_BdC: Tensor) -> Tensor:
    """The `c` of `c_t = decay_t · c_{t−d} + addition_t`, `(B, L, C)`; the history is `c` at the `d` tokens before."""
    earlier, found = history_BdC, []
    delay = history_BdC.shape[1]
    for decay, addition in zip(decay_BLC.split(delay, dim=1), addition_BLC.split(delay, dim=1), strict=True):
        earlier = torch.addcmul(addition, decay, earlier[:, : decay.shape[1]])
        found.append(earlier)
    return torch.cat(found, dim=1)
