"""The quasi-recurrent network (Bradbury et al. 2016, arXiv:1611.01576).

    z, f, o = tanh(W_z ∗ x), σ(W_f ∗ x), σ(W_o ∗ x)         causal convolutions
    c_t = f_t ⊙ c_{t−1} + (1 − f_t) ⊙ z_t,   h_t = o_t ⊙ c_t       (fo-pooling)

The recurrence itself is elementwise work; all matrix products are those of the convolutions, for all tokens at once.
`weight_dropout` makes it the AWD-QRNN (Merity et al. 2018, arXiv:1803.08240).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from equilibria.nn.convolution import linear_recurrence
from equilibria.paper.baselines.base import Layer, State
from equilibria.paper.baselines.recurrent import with_dropped_weights
from equilibria.ranges import probability, whole


class QRNNLayer(Layer):
    """One layer with fo-pooling. Its state is the past of the convolution and the last `c`, `(B, 1, d_out)`.

    Args:
        d_in, d_out: features of the input, hidden units.
        window: tokens that the convolution sees.
        weight_dropout: probability of dropping an entry of the convolution, for a whole segment.
    """

    def __init__(self, d_in: int, d_out: int, window: int = 1, weight_dropout: float = 0.0) -> None:
        whole(1, window=window)
        super().__init__(d_in, d_out, (window - 1, d_in), (1, d_out))
        probability(weight_dropout=weight_dropout)
        self.weight_dropout = weight_dropout
        self.convolution = nn.Conv1d(d_in, 3 * d_out, window)

    def forward(self, x_BLD: Tensor, state: State) -> tuple[Tensor, State]:
        past, start = state
        extended = torch.cat([past, x_BLD], dim=1)
        gates = with_dropped_weights(self.convolution, ["weight"], self.weight_dropout, extended.transpose(1, 2))
        z, f, o = gates.transpose(1, 2).chunk(3, dim=-1)
        f = torch.sigmoid(f)
        c_BLH = linear_recurrence(f, (1.0 - f) * torch.tanh(z), start)
        return torch.sigmoid(o) * c_BLH, (extended[:, x_BLD.shape[1] :], c_BLH[:, -1:])
