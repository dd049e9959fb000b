"""A small causal layer with a memory, for what must hold whatever the cell is."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from equilibria.cells import BoundMap, Cell, Memory
from equilibria.cells.base import Past


class AveragingLayer(Cell):
    """`f(z; x)_t = tanh(A z_t + B mean_{s ≤ t} [memory; z]_s + c + x_t)`, without `x` where nothing is injected."""

    def __init__(self, d_model: int = 6, injection: bool = False, dropout: float = 0.0, gain: float = 0.5) -> None:
        super().__init__()
        self.d_model, self.injection, self.dropout = d_model, injection, dropout
        self.here, self.before = nn.Linear(d_model, d_model), nn.Linear(d_model, d_model, bias=False)
        for linear in (self.here, self.before):
            nn.init.normal_(linear.weight, std=gain / d_model**0.5)
        self.evaluations = 0

    def bind(self, inputs_BLD: Tensor, past: Past = None) -> AveragingMap:
        assert past is None or isinstance(past, Memory)
        states = past.states[0] if past is not None else inputs_BLD[:, :0]
        mask: Tensor | float = 1.0
        if self.training and self.dropout:
            mask = torch.empty_like(inputs_BLD).bernoulli_(1.0 - self.dropout)
        injected = inputs_BLD if self.injection else 0.0
        return AveragingMap(self, injected, states.sum(1, keepdim=True), states.shape[1], mask)


@dataclass(frozen=True, eq=False)
class AveragingMap(BoundMap[AveragingLayer]):
    """The injected inputs, the sum and number of the tokens in the memory, and a dropout mask."""

    injected: Tensor | float
    past_B1D: Tensor
    count: int
    mask: Tensor | float

    def evaluate(self, z_BLD: Tensor) -> Tensor:
        cell = self.cell
        cell.evaluations += 1
        seen = torch.arange(1, z_BLD.shape[1] + 1, dtype=z_BLD.dtype).unsqueeze(-1) + self.count
        mean_BLD = (self.past_B1D + z_BLD.cumsum(1)) / seen
        return torch.tanh(cell.here(z_BLD) + cell.before(mean_BLD) + self.injected) * self.mask

    def remember(self, z_BLD: Tensor, latest: bool = False) -> tuple[Tensor, ...]:
        return (z_BLD,)


def by_loops(layer: AveragingLayer, z: Tensor, inputs: Tensor, memory: Tensor) -> Tensor:
    """The layer's formula, number by number."""
    A, B, c = layer.here.weight, layer.before.weight, layer.here.bias
    value = torch.empty_like(z)
    for b in range(z.shape[0]):
        for t in range(z.shape[1]):
            seen = [*memory[b], *z[b, : t + 1]]
            for i in range(z.shape[2]):
                total = float(c[i]) + (float(inputs[b, t, i]) if layer.injection else 0.0)
                for j in range(z.shape[2]):
                    mean = sum(float(state[j]) for state in seen) / len(seen)
                    total += float(A[i, j]) * float(z[b, t, j]) + float(B[i, j]) * mean
                value[b, t, i] = torch.tensor(total, dtype=z.dtype).tanh()
    return value
