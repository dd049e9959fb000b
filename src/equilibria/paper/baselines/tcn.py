"""The temporal convolutional network (Bai et al. 2018, arXiv:1803.01271).

    y = dropout(relu(Conv_1 x)),  y = dropout(relu(Conv_2 y)),  o = relu(y + x)

Weight-normed dilated causal convolutions, dropout of whole channels; `x` goes through a 1×1 convolution where the
widths differ. Initialised as PyTorch's convolutions are, which the published code does in effect.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from equilibria.nn import dropout_mask, masked
from equilibria.paper.baselines.base import Layer, State, causal_convolution
from equilibria.ranges import at_least


class TemporalBlock(Layer):
    """One residual block. Its state is the past of either convolution.

    Args:
        d_in, d_out: channels in and out.
        kernel_size: taps of both convolutions.
        dilation: tokens between taps.
        dropout: probability of dropping a channel, for a whole segment.
    """

    def __init__(self, d_in: int, d_out: int, kernel_size: int, dilation: int, dropout: float = 0.0) -> None:
        at_least(1, kernel_size=kernel_size, dilation=dilation)
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
