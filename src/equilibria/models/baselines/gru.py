"""The gated recurrent unit (Cho et al. 2014, arXiv:1406.1078), PyTorch's."""

from __future__ import annotations

from torch import Tensor, nn

from equilibria.models.baselines.base import Layer, State
from equilibria.models.baselines.weight_dropout import with_dropped_weights


class GRULayer(Layer):
    """One GRU layer. Its state is the hidden state `(B, 1, d_out)`.

    Args:
        d_in: features of the input.
        d_out: hidden units.
        weight_dropout: probability of dropping an entry of the recurrent matrix, for a whole segment.
    """

    def __init__(self, d_in: int, d_out: int, weight_dropout: float = 0.0) -> None:
        super().__init__()
        self.d_in, self.d_out, self.weight_dropout = d_in, d_out, weight_dropout
        self.state_shapes = ((1, d_out),)
        self.gru = nn.GRU(d_in, d_out, batch_first=True)

    def forward(self, x_BLD: Tensor, state: State) -> tuple[Tensor, State]:
        """The hidden states `(B, L, d_out)` and the last of them."""
        first = state[0].transpose(0, 1).contiguous()
        y_BLH, last = with_dropped_weights(self.gru, ["weight_hh_l0"], self.weight_dropout, x_BLD, first)
        return y_BLH, (last.transpose(0, 1),)
