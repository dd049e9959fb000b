"""The recurrent layers that PyTorch has, one layer at a time so that masks fit between layers: the LSTM (Hochreiter and
Schmidhuber 1997) and the gated recurrent unit (Cho et al. 2014, arXiv:1406.1078).

With `weight_dropout` and the regularisers of `SequenceModel` the LSTM is the AWD-LSTM (Merity et al. 2017,
arXiv:1708.02182), whose published size is `awd_lstm()`.
"""

from __future__ import annotations

from contextlib import nullcontext
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor, nn

from equilibria.paper.baselines.base import Layer, State
from equilibria.paper.baselines.weight_dropout import with_dropped_weights


class RecurrentLayer(Layer):
    """A layer of one of PyTorch's recurrent networks. Its state is that network's, each part `(B, 1, d_out)`.

    Args:
        d_in: features of the input.
        d_out: hidden units.
        weight_dropout: probability of dropping an entry of the recurrent matrix, for a whole segment.
    """

    kind: ClassVar[type[nn.LSTM | nn.GRU]]
    states: ClassVar[int]

    def __init__(self, d_in: int, d_out: int, weight_dropout: float = 0.0) -> None:
        super().__init__()
        self.d_in, self.d_out, self.weight_dropout = d_in, d_out, weight_dropout
        self.state_shapes = ((1, d_out),) * self.states
        self.network = self.kind(d_in, d_out, batch_first=True)

    def forward(self, x_BLD: Tensor, state: State) -> tuple[Tensor, State]:
        """The hidden states `(B, L, d_out)` and the last state."""
        first = tuple(part.transpose(0, 1).contiguous() for part in state)
        given = first if self.states > 1 else first[0]
        whole = _lacks_lowered_precision(x_BLD.device)
        with torch.autocast(x_BLD.device.type, enabled=False) if whole else nullcontext():
            inputs = (x_BLD.float() if whole else x_BLD, given)
            y_BLH, last = with_dropped_weights(self.network, ["weight_hh_l0"], self.weight_dropout, *inputs)
        return y_BLH, tuple(part.transpose(0, 1) for part in (last if self.states > 1 else (last,)))


def _lacks_lowered_precision(device: torch.device) -> bool:
    """Whether autocast is on for a processor on which PyTorch's LSTM raises under it.

    oneDNN has that kernel from AVX-512 on; elsewhere the layer is computed in float32.
    """
    return (
        device.type == "cpu" and torch.is_autocast_enabled("cpu") and not torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


class LSTMLayer(RecurrentLayer):
    """One LSTM layer. Its state is the hidden state and the cell."""

    kind, states = nn.LSTM, 2


class GRULayer(RecurrentLayer):
    """One GRU layer. Its state is the hidden state."""

    kind, states = nn.GRU, 1


def awd_lstm(
    d_model: int = 400, hidden: int = 1150, layers: int = 3, weight_dropout: float = 0.5
) -> tuple[LSTMLayer, ...]:
    """The layers of the AWD-LSTM: `hidden` units, but `d_model` in the last, for a softmax tied to the embedding."""
    widths = [d_model, *[hidden] * (layers - 1), d_model]
    return tuple(LSTMLayer(d_in, d_out, weight_dropout) for d_in, d_out in pairwise(widths))
