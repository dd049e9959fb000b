"""The recurrent layers that PyTorch has, one layer at a time so that masks fit between layers: the LSTM (Hochreiter and
Schmidhuber 1997) and the gated recurrent unit (Cho et al. 2014, arXiv:1406.1078).

With dropout of recurrent weights (Wan et al. 2013) and the regularisers of `SequenceModel` the LSTM is the AWD-LSTM
(Merity et al. 2017, arXiv:1708.02182).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from equilibria.nn import drop_connect
from equilibria.paper.baselines.base import Layer, State


def with_dropped_weights(layer: nn.Module, names: Sequence[str], probability: float, *inputs: Any) -> Any:
    """`layer(*inputs)`, in training with entries of the named weights zeroed and the rest scaled up for this call."""
    if not layer.training or probability == 0.0:
        return layer(*inputs)  # PyTorch's own kernels are quickest on a layer's own weights
    dropped = {name: drop_connect(layer.get_parameter(name), probability, layer.training) for name in names}
    return functional_call(layer, dropped, inputs)


class RecurrentLayer(Layer):
    """A layer of one of PyTorch's recurrent networks. Its state is that network's, each part `(B, 1, d_out)`.

    Args:
        d_in, d_out: features of the input, hidden units.
        weight_dropout: probability of dropping an entry of the recurrent matrix, for a whole segment.
    """

    kind: ClassVar[type[nn.LSTM | nn.GRU]]
    states: ClassVar[int]

    def __init__(self, d_in: int, d_out: int, weight_dropout: float = 0.0) -> None:
        super().__init__(d_in, d_out, *[(1, d_out)] * self.states)
        self.weight_dropout = weight_dropout
        self.network = self.kind(d_in, d_out, batch_first=True)

    def forward(self, x_BLD: Tensor, state: State) -> tuple[Tensor, State]:
        first = tuple(part.transpose(0, 1).contiguous() for part in state)
        given = first if self.states > 1 else first[0]
        whole = _lacks_lowered_precision(x_BLD.device)
        with torch.autocast(x_BLD.device.type, enabled=False) if whole else nullcontext():
            inputs = (x_BLD.float() if whole else x_BLD, given)
            y_BLH, last = with_dropped_weights(self.network, ["weight_hh_l0"], self.weight_dropout, *inputs)
        return y_BLH, tuple(part.transpose(0, 1) for part in (last if self.states > 1 else (last,)))


def _lacks_lowered_precision(device: torch.device) -> bool:
    """Whether autocast is on for a processor below AVX-512, on which PyTorch's LSTM raises under it."""
    return (
        device.type == "cpu" and torch.is_autocast_enabled("cpu") and not torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


class LSTMLayer(RecurrentLayer):
    """One LSTM layer. Its state is the hidden state and the cell."""

    kind, states = nn.LSTM, 2


class GRULayer(RecurrentLayer):
    """One GRU layer. Its state is the hidden state."""

    kind, states = nn.GRU, 1
