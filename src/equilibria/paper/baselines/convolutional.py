"""Weight-normed causal convolutions: temporal and gated networks."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from equilibria.nn import dropout_mask, masked
from equilibria.paper.baselines.base import Layer, State
from equilibria.ranges import probability, whole


def causal_convolution(convolution: nn.Conv1d, x_BLD: Tensor, past_BMD: Tensor) -> tuple[Tensor, Tensor]:
    """The convolution `(B, L, H)` of a segment and the inputs before it, and the inputs before the next segment."""
    extended_BSD = torch.cat([past_BMD, x_BLD], dim=1)
    y_BLH = convolution(extended_BSD.transpose(1, 2)).transpose(1, 2)
    return y_BLH, extended_BSD[:, x_BLD.shape[1] :]


class TemporalBlock(Layer):
    """A residual block of the temporal convolutional network (Bai et al. 2018, arXiv:1803.01271).

        y = dropout(relu(Conv_1 x)),  y = dropout(relu(Conv_2 y)),  o = relu(y + x)

    Dilated convolutions, dropout of whole channels; `x` goes through a 1×1 convolution where the widths differ.
    Initialised as PyTorch's convolutions are, which the published code does in effect.
    The state is the past of either convolution.

    Args:
        d_in, d_out: channels in and out.
        kernel_size: taps of both convolutions.
        dilation: tokens between taps.
        dropout: probability of dropping a channel, for a whole segment.
    """

    def __init__(self, d_in: int, d_out: int, kernel_size: int, dilation: int, dropout: float = 0.0) -> None:
        whole(1, kernel_size=kernel_size, dilation=dilation)
        probability(dropout=dropout)
        past = (kernel_size - 1) * dilation
        super().__init__(d_in, d_out, (past, d_in), (past, d_out))
        self.dropout = dropout
        self.first = nn.Conv1d(d_in, d_out, kernel_size, dilation=dilation)
        self.second = nn.Conv1d(d_out, d_out, kernel_size, dilation=dilation)
        for convolution in (self.first, self.second):
            weight_norm(convolution)
        self.match = nn.Linear(d_in, d_out) if d_in != d_out else nn.Identity()

    def forward(self, x_BLD: Tensor, state: State) -> tuple[Tensor, State]:
        y_BLH, first_past = causal_convolution(self.first, x_BLD, state[0])
        y_BLH, second_past = causal_convolution(self.second, self._activated(y_BLH), state[1])
        return F.relu(self._activated(y_BLH) + self.match(x_BLD)), (first_past, second_past)

    def _activated(self, y_BLH: Tensor) -> Tensor:
        y_BLH = F.relu(y_BLH)
        return masked(y_BLH, dropout_mask(y_BLH[:, :1], self.dropout, self.training))


class GatedBlock(Layer):
    """A block of the gated convolutional network (Dauphin et al. 2016, arXiv:1612.08083).

        h_l = (X ∗ W + b) ⊗ σ(X ∗ V + c),   a residual connection around each block of one or several such layers

    A block whose widths differ projects its input; as in the authors' code the sum is scaled by √½.
    The state is the past of each convolution.

    Args:
        d_in: channels in.
        convolutions: kernel size and channels of each; three make a bottleneck block.
        dropout: probability of dropping a channel of an input, for a whole segment.
    """

    def __init__(self, d_in: int, convolutions: Sequence[tuple[int, int]], dropout: float = 0.0) -> None:
        if not convolutions or min(size for pair in convolutions for size in pair) < 1:
            raise ValueError(f"convolutions must be pairs of sizes of at least 1, found {convolutions}")
        probability(dropout=dropout)
        widths = [d_in, *[channels for _, channels in convolutions]]
        pairs = list(zip(widths[:-1], convolutions, strict=True))
        super().__init__(d_in, widths[-1], *((kernel_size - 1, before) for before, (kernel_size, _) in pairs))
        self.dropout = dropout
        layers = [nn.Conv1d(before, 2 * channels, kernel_size) for before, (kernel_size, channels) in pairs]
        for layer in layers:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="linear")
            nn.init.zeros_(layer.bias)  # pyright: ignore[reportArgumentType]
        self.convolutions = nn.ModuleList(weight_norm(layer) for layer in layers)
        self.match = nn.Linear(d_in, self.d_out) if d_in != self.d_out else nn.Identity()

    def forward(self, x_BLD: Tensor, state: State) -> tuple[Tensor, State]:
        y_BLD, pasts = x_BLD, []
        for convolution, past in zip(self.convolutions, state, strict=True):
            assert isinstance(convolution, nn.Conv1d)
            y_BLD = masked(y_BLD, dropout_mask(y_BLD[:, :1], self.dropout, self.training))
            y_BLD, past = causal_convolution(convolution, y_BLD, past)
            y_BLD = F.glu(y_BLD, dim=-1)
            pasts.append(past)
        return (y_BLD + self.match(x_BLD)) * math.sqrt(0.5), tuple(pasts)
