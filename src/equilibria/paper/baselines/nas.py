"""The recurrent cell found by architecture search (Zoph and Le 2016, arXiv:1611.01578).

With `x = W x_t` and `h = U h_{t−1}` in eight parts each, no biases:

    a = tanh(σ(x₀ + h₀) ⊙ relu(x₁ + h₁)),    b = tanh(σ(x₂ + h₂) + relu(x₃ ⊙ h₃))
    d = tanh(tanh(x₄ + h₄) ⊙ σ(x₅ + h₅)),    e = σ(tanh(x₆ + h₆) + σ(x₇ + h₇))
    c_t = tanh(a + c_{t−1}) ⊙ b,    h_t = tanh(c_t ⊙ tanh(d + e))
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from equilibria.paper.baselines.base import Layer, State

_PARTS = 8


class NASLayer(Layer):
    """A recurrent layer of that cell. Its state is the hidden state and the cell, `(B, 1, d_out)` each."""

    def __init__(self, d_in: int, d_out: int) -> None:
        super().__init__(d_in, d_out, (1, d_out), (1, d_out))
        self.inject = nn.Linear(d_in, _PARTS * d_out, bias=False)
        self.recur = nn.Linear(d_out, _PARTS * d_out, bias=False)
        for layer in (self.inject, self.recur):
            nn.init.xavier_uniform_(layer.weight)

    def forward(self, x_BLD: Tensor, state: State) -> tuple[Tensor, State]:
        h_BH, c_BH = (part[:, 0] for part in state)
        hidden = []
        for injected in self.inject(x_BLD).unbind(1):
            h_BH, c_BH = _step(injected.chunk(_PARTS, dim=-1), self.recur(h_BH).chunk(_PARTS, dim=-1), c_BH)
            hidden.append(h_BH)
        return torch.stack(hidden, dim=1), (h_BH.unsqueeze(1), c_BH.unsqueeze(1))


def _step(x: tuple[Tensor, ...], h: tuple[Tensor, ...], c_BH: Tensor) -> tuple[Tensor, Tensor]:
    product = x[3] * h[3]
    s0, s1, s2, s4, s5, s6, s7 = (x[part] + h[part] for part in (0, 1, 2, 4, 5, 6, 7))
    a = torch.tanh(s0.sigmoid() * s1.relu())
    b = torch.tanh(s2.sigmoid() + product.relu())
    d = torch.tanh(s4.tanh() * s5.sigmoid())
    e = torch.sigmoid(s6.tanh() + s7.sigmoid())
    c_BH = torch.tanh(a + c_BH) * b
    return torch.tanh(c_BH * torch.tanh(d + e)), c_BH
