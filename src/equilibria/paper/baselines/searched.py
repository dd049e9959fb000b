"""Recurrent cells found by architecture search."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, cast, get_args

import torch
from torch import Tensor, nn

from equilibria.nn import dropout_mask, masked
from equilibria.paper.baselines.base import Layer, State
from equilibria.ranges import probability

Activation = Literal["tanh", "relu", "sigmoid", "identity"]

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "identity": lambda x: x,
}
_PARTS = 8  # of the products in NAS
_INITIAL = 0.04  # half the width of the uniform distribution that the authors start from


@dataclass(frozen=True)
class Node:
    """One node of the graph: its activation, and the node it reads (0 is the one that reads the input)."""

    activation: Activation
    predecessor: int


def _graph(activations: str, *predecessors: int) -> tuple[Node, ...]:
    return tuple(map(Node, cast("list[Activation]", activations.split()), predecessors))


DARTS_FIRST_ORDER = _graph("relu relu tanh relu relu identity relu relu", 0, 1, 2, 3, 4, 1, 5, 1)
"""The cell found on Penn Treebank with the first-order approximation."""

DARTS_SECOND_ORDER = _graph("sigmoid relu relu identity tanh sigmoid tanh relu", 0, 1, 1, 1, 2, 5, 3, 5)
"""The cell found with the second-order approximation, which is that of the tables."""


class DARTSLayer(Layer):
    """The recurrent cell found by DARTS (Liu et al. 2018, arXiv:1806.09055): a small graph of highway nodes.

        c, h = [x_t; h_{t−1}] W_0,   s_0 = h_{t−1} + σ(c) ⊙ (tanh(h) − h_{t−1})
        c, h = s_p W_i,              s_i = s_p + σ(c) ⊙ (φ_i(h) − s_p)   for node i, predecessor p, activation φ_i
        h_t = mean(s_1, …, s_n)

    Dropout masks of the input and of what the recurrent matrices read are drawn once per segment.
    The state is the hidden state `(B, 1, d_out)`.

    Args:
        d_in, d_out: features of the input, hidden units.
        nodes: the graph; a node reads an earlier one.
        cell_dropout: probability of dropping a feature of the input.
        recurrent_dropout: of dropping a feature of what each node reads.
    """

    def __init__(
        self,
        d_in: int,
        d_out: int,
        nodes: tuple[Node, ...] = DARTS_SECOND_ORDER,
        cell_dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
    ) -> None:
        super().__init__(d_in, d_out, (1, d_out))
        probability(cell_dropout=cell_dropout, recurrent_dropout=recurrent_dropout)
        for number, node in enumerate(nodes, start=1):
            if not 0 <= node.predecessor < number or node.activation not in get_args(Activation):
                raise ValueError(f"node {number} must read one of 0 to {number - 1} with a known activation: {node}")
        self.nodes, self.cell_dropout, self.recurrent_dropout = nodes, cell_dropout, recurrent_dropout
        self.inject = nn.Linear(d_in, 2 * d_out, bias=False)
        self.recur = nn.Linear(d_out, 2 * d_out, bias=False)
        self.steps = nn.ModuleList(nn.Linear(d_out, 2 * d_out, bias=False) for _ in nodes)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -_INITIAL, _INITIAL)

    def forward(self, x_BLD: Tensor, state: State) -> tuple[Tensor, State]:
        h_BH = state[0][:, 0]
        mask = dropout_mask(h_BH, self.recurrent_dropout, self.training)
        x_BLD = masked(x_BLD, dropout_mask(x_BLD[:, :1], self.cell_dropout, self.training))
        hidden = []
        for injected in self.inject(x_BLD).unbind(1):
            h_BH = self._step(injected, h_BH, mask)
            hidden.append(h_BH)
        h_BLH = torch.stack(hidden, dim=1)
        return h_BLH, (h_BLH[:, -1:],)

    def _step(self, injected: Tensor, h_BH: Tensor, mask: Tensor | None) -> Tensor:
        states = [_highway(h_BH, injected + self.recur(masked(h_BH, mask)), torch.tanh)]
        for node, step in zip(self.nodes, self.steps, strict=True):
            before = states[node.predecessor]
            states.append(_highway(before, step(masked(before, mask)), _ACTIVATIONS[node.activation]))
        return torch.stack(states[1:]).mean(0)


def _highway(s: Tensor, gate_and_value: Tensor, activation: Callable[[Tensor], Tensor]) -> Tensor:
    # Under autocast a product has lower precision than the state, and `lerp` takes no two.
    gate, value = gate_and_value.to(s.dtype).chunk(2, dim=-1)
    return torch.lerp(s, activation(value), torch.sigmoid(gate))


class NASLayer(Layer):
    """The recurrent cell found by reinforcement learning (Zoph and Le 2016, arXiv:1611.01578).

    With `x = W x_t` and `h = U h_{t−1}` in eight parts each, no biases:

        a = tanh(σ(x₀ + h₀) ⊙ relu(x₁ + h₁)),    b = tanh(σ(x₂ + h₂) + relu(x₃ ⊙ h₃))
        d = tanh(tanh(x₄ + h₄) ⊙ σ(x₅ + h₅)),    e = σ(tanh(x₆ + h₆) + σ(x₇ + h₇))
        c_t = tanh(a + c_{t−1}) ⊙ b,    h_t = tanh(c_t ⊙ tanh(d + e))

    The state is the hidden state and the cell, `(B, 1, d_out)` each.
    """

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
            h_BH, c_BH = _nas_step(injected.chunk(_PARTS, dim=-1), self.recur(h_BH).chunk(_PARTS, dim=-1), c_BH)
            hidden.append(h_BH)
        return torch.stack(hidden, dim=1), (h_BH.unsqueeze(1), c_BH.unsqueeze(1))


def _nas_step(x: tuple[Tensor, ...], h: tuple[Tensor, ...], c_BH: Tensor) -> tuple[Tensor, Tensor]:
    product = x[3] * h[3]
    s0, s1, s2, s4, s5, s6, s7 = (x[part] + h[part] for part in (0, 1, 2, 4, 5, 6, 7))
    a = torch.tanh(s0.sigmoid() * s1.relu())
    b = torch.tanh(s2.sigmoid() + product.relu())
    d = torch.tanh(s4.tanh() * s5.sigmoid())
    e = torch.sigmoid(s6.tanh() + s7.sigmoid())
    c_BH = torch.tanh(a + c_BH) * b
    return torch.tanh(c_BH * torch.tanh(d + e)), c_BH
