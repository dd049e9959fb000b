"""The gated convolutional network (Dauphin et al. 2016, arXiv:1612.08083).

    h_l = (X ∗ W + b) ⊗ σ(X ∗ V + c),   a residual connection around each block of one or several such layers

Weight-normed causal convolutions. A block whose widths differ projects its input; as in the authors' code the sum is
scaled by √½.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from equilibria.nn import dropout_mask, masked
from equilibria.paper.baselines.base import Layer, State, causal_convolution


class GatedBlock(Layer):
    """Gated convolutions with one residual connection around them. The state is the past of each.

    Args:
        d_in: channels in.
        convolutions: kernel size and channels of each; three make a bottleneck block.
        dropout: probability of dropping a channel of an input, for a whole segment.
    """

    def __init__(self, d_in: int, convolutions: Sequence[tuple[int, int]], dropout: float = 0.0) -> None:
        if not convolutions or min(size for pair in convolutions for size in pair) < 1:
            raise ValueError(f"convolutions must be pairs of sizes of at least 1, found {convolutions}")
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
