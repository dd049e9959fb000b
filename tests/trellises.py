"""Small trellis cells, shared by their tests."""

from __future__ import annotations

import torch
from torch import Tensor

from equilibria.cells import Memory, TrellisCell

D, HIDDEN, OUT = 3, 3, 2
SIZE = HIDDEN + OUT


def trellis(seed: int = 0, gain: float = 0.6, **options) -> TrellisCell:
    """A small float64 cell in evaluation mode, whose recurrent weight matters, its gains unlike the norms."""
    torch.manual_seed(seed)
    cell = TrellisCell(D, HIDDEN, OUT, recurrent_std=gain, **options).double()
    with torch.no_grad():
        for name, parameter in cell.named_parameters():
            if name.endswith("original0"):
                parameter.mul_(0.5 + torch.rand_like(parameter))
        if cell.normalisation == "spectral":
            for _ in range(300):  # its power iteration moves with each reading in training; here it is to be exact
                _ = cell.train().inject.weight, cell.recur.weight
    return cell.eval()


def random(*shape: int) -> Tensor:
    """Normal numbers in float64."""
    return torch.randn(*shape, dtype=torch.float64)


def settle(cell: TrellisCell, inputs: Tensor, memory: Memory | None = None, applications: int = 200) -> Tensor:
    """The cell applied so often from its initial state."""
    bound = cell.bind(inputs, memory)
    z = cell.initial_state(inputs)
    for _ in range(applications):
        z = bound(z)
    return z
