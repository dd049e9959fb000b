"""The variational LSTM (Gal and Ghahramani 2016, arXiv:1512.05287): each gate reads the input and the last hidden state
through masks of its own ("untied weights"), drawn once per row and segment.

    i, f, g, o = W_x^k (m_x^k ⊙ x_t) + W_h^k (m_h^k ⊙ h_{t−1}) + b^k,     k one of the four gates

The weights are those of PyTorch's LSTM, which computes whatever nothing is dropped from.
Shapes: B batch, L length, D features of the input, H hidden units, K gates.
"""

from __future__ import annotations

import torch
from torch import Tensor

from equilibria.nn import dropout_mask
from equilibria.paper.baselines.base import State
from equilibria.paper.baselines.recurrent import LSTMLayer
from equilibria.ranges import probability

_GATES = 4


class VariationalLSTMLayer(LSTMLayer):
    """One such layer. Its state is the hidden state and the cell, `(B, 1, d_out)` each.

    Args:
        d_in, d_out: features of the input, hidden units.
        input_dropout: probability of dropping a feature of the input, in each gate on its own.
        recurrent_dropout: the same of the last hidden state.
    """

    def __init__(self, d_in: int, d_out: int, input_dropout: float = 0.0, recurrent_dropout: float = 0.0) -> None:
        super().__init__(d_in, d_out)
        probability(input_dropout=input_dropout, recurrent_dropout=recurrent_dropout)
        self.input_dropout, self.recurrent_dropout = input_dropout, recurrent_dropout

    def forward(self, x_BLD: Tensor, state: State) -> tuple[Tensor, State]:
        if not self.training or not (self.input_dropout or self.recurrent_dropout):
            return super().forward(x_BLD, state)
        weights = dict(self.network.named_parameters())
        recurrent_KHH = weights["weight_hh_l0"].unflatten(0, (_GATES, -1))
        inject_KHD = weights["weight_ih_l0"].unflatten(0, (_GATES, -1))
        bias_KH = (weights["bias_ih_l0"] + weights["bias_hh_l0"]).unflatten(0, (_GATES, -1))
        h_BH, c_BH = (part[:, 0] for part in state)
        seen_LBKD = _for_gates(x_BLD.transpose(0, 1), self._mask(x_BLD[:, 0], self.input_dropout))
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
