"""Causal convolutions of kernel 2 and linear recurrences over time.

The convolution is a linear layer on pairs `[x_{t−d}, x_t]`: one matrix product for both taps, in the layout `(B, L, ·)`
of everything else, and faster on a CPU than `conv1d` at the sizes of a language model.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def last(before_BMC: Tensor, count: int) -> Tensor:
    """The last `count` tokens before a segment, `(B, count, C)`: zeros where there are fewer."""
    tail_BmC = before_BMC[:, max(before_BMC.shape[1] - count, 0) :]
    return F.pad(tail_BmC, (0, 0, count - tail_BmC.shape[1], 0))


def delayed(x_BLC: Tensor, history_BdC: Tensor) -> Tensor:
    """`x_{t−d}` for each `t`, `(B, L, C)`: the `d` tokens of the history first."""
    return torch.cat([history_BdC, x_BLC], dim=1)[:, : x_BLC.shape[1]]


def pairs(x_BLC: Tensor, history_BdC: Tensor) -> Tensor:
    """`[x_{t−d}, x_t]`, `(B, L, 2C)`: what the taps of a causal convolution of kernel 2 and dilation `d` see."""
    return torch.cat([delayed(x_BLC, history_BdC), x_BLC], dim=-1)


def linear_recurrence(decay_BLC: Tensor, addition_BLC: Tensor, history_BdC: Tensor) -> Tensor:
    """The `c` of `c_t = decay_t · c_{t−d} + addition_t`, `(B, L, C)`; the history is `c` at the `d` tokens before.
    Token by token: this is elementwise work, little beside a cell's matrix products."""
    earlier, found = history_BdC, []
    delay = history_BdC.shape[1]
    for decay, addition in zip(decay_BLC.split(delay, dim=1), addition_BLC.split(delay, dim=1), strict=True):
        earlier = torch.addcmul(addition, decay, earlier[:, : decay.shape[1]])
        found.append(earlier)
    return torch.cat(found, dim=1)
