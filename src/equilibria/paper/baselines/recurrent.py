"""PyTorch's recurrent networks, a layer at a time so that masks fit between layers.

The LSTM (Hochreiter and Schmidhuber 1997), also variational, and the gated recurrent unit (Cho et al. 2014,
arXiv:1406.1078). With dropout of recurrent weights (Wan et al. 2013) and the regularisers of `SequenceModel` the LSTM
is the AWD-LSTM (Merity et al. 2017, arXiv:1708.02182).
Shapes: B batch, L length, D features of the input, H hidden units, K gates.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from equilibria.nn import drop_connect, dropout_mask
from equilibria.paper.baselines.base import Layer, State
from equilibria.ranges import probability

_GATES = 4  # of an LSTM


def with_dropped_weights(layer: nn.Module, names: Sequence[str], dropout: float, *inputs: Any) -> Any:
    """`layer(*inputs)`, in training with entries of the named weights zeroed and the rest scaled up for this call."""
    if not layer.training or dropout == 0.0:
        return layer(*inputs)  # PyTorch's own kernels are quickest on a layer's own weights
    dropped = {name: drop_connect(layer.get_parameter(name), dropout, layer.training) for name in names}
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
        probability(weight_dropout=weight_dropout)
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


class VariationalLSTMLayer(LSTMLayer):
    """A variational LSTM (Gal and Ghahramani 2016, arXiv:1512.05287): each gate reads the input and the last hidden
    state through its own masks ("untied weights"), drawn once per row and segment.

        i, f, g, o = W_x^k (m_x^k ⊙ x_t) + W_h^k (m_h^k ⊙ h_{t−1}) + b^k,     k one of the four gates

    Without dropout PyTorch's LSTM computes it.

    Args:
        d_in, d_out: features of the input, hidden units.
        cell_dropout: probability of dropping a feature of the input, in each gate on its own.
        recurrent_dropout: the same of the last hidden state.
    """

    def __init__(self, d_in: int, d_out: int, cell_dropout: float = 0.0, recurrent_dropout: float = 0.0) -> None:
        super().__init__(d_in, d_out)
        probability(cell_dropout=cell_dropout, recurrent_dropout=recurrent_dropout)
        self.cell_dropout, self.recurrent_dropout = cell_dropout, recurrent_dropout

    def forward(self, x_BLD: Tensor, state: State) -> tuple[Tensor, State]:
        if not self.training or not (self.cell_dropout or self.recurrent_dropout):
            return super().forward(x_BLD, state)
        weights = dict(self.network.named_parameters())
        recurrent_KHH = weights["weight_hh_l0"].unflatten(0, (_GATES, -1))
        inject_KHD = weights["weight_ih_l0"].unflatten(0, (_GATES, -1))
        bias_KH = (weights["bias_ih_l0"] + weights["bias_hh_l0"]).unflatten(0, (_GATES, -1))
        h_BH, c_BH = (part[:, 0] for part in state)
        seen_LBKD = _for_gates(x_BLD.transpose(0, 1), self._mask(x_BLD[:, 0], self.cell_dropout))
        injected_LBKH = torch.einsum("lbkd,khd->lbkh", seen_LBKD, inject_KHD) + bias_KH
        mask_BKH, hidden = self._mask(h_BH, self.recurrent_dropout), []
        for injected_BKH in injected_LBKH:
            gates = injected_BKH + torch.einsum("bkh,kjh->bkj", _for_gates(h_BH, mask_BKH), recurrent_KHH)
            i, f, g, o = gates.unbind(1)
            c_BH = f.sigmoid() * c_BH + i.sigmoid() * g.tanh()
            h_BH = o.sigmoid() * c_BH.tanh()
            hidden.append(h_BH)
        return torch.stack(hidden, dim=1), (h_BH.unsqueeze(1), c_BH.unsqueeze(1))

    def _mask(self, like_BD: Tensor, dropout: float) -> Tensor | None:
        return dropout_mask(like_BD.unsqueeze(1).expand(-1, _GATES, -1), dropout, self.training)


def _for_gates(x: Tensor, mask_BKD: Tensor | None) -> Tensor:
    """`(…, B, D)` as each gate sees it, `(…, B, K, D)`."""
    seen = x.unsqueeze(-2).expand(*x.shape[:-1], _GATES, x.shape[-1])
    return seen if mask_BKD is None else seen * mask_BKD
