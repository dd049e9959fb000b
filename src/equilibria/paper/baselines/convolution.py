"""Causal convolution that goes on where the last segment ended."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def reach(convolution: nn.Conv1d) -> int:
    """Earlier tokens that a convolution sees besides the present one."""
    return (convolution.kernel_size[0] - 1) * convolution.dilation[0]


def causal_convolution(convolution: nn.Conv1d, x_BLD: Tensor, past_BMD: Tensor) -> tuple[Tensor, Tensor]:
    """The convolution `(B, L, H)` of the past and the segment, and the past of the next segment.

    Args:
        convolution: without padding.
        x_BLD: the segment.
        past_BMD: the `reach(convolution)` inputs before it; zeros at the start of a sequence.
    """
    extended_BSD = torch.cat([past_BMD, x_BLD], dim=1)
    y_BLH = convolution(extended_BSD.transpose(1, 2)).transpose(1, 2)
    return y_BLH, extended_BSD[:, x_BLD.shape[1] :]
