"""Maps whose rows depend on each other: what a solver that takes rows for problems of their own must not miss."""

from __future__ import annotations

import torch
from torch import Tensor

from problem_sets.problem import Problem, columns, seeded, vector


def _mixed(z: Tensor, gain: Tensor, seed: int) -> Tensor:
    n = z.shape[-1]
    return gain * z @ seeded(seed, n, n).to(z) / n**0.5


def batch_norm(z: Tensor, p: Tensor) -> Tensor:
    """Every feature is normalised over the rows."""
    value = _mixed(z, p[0], 61) + seeded(62, *z.shape).to(z)
    normal = (value - value.mean(0)) / (value.var(0, correction=0) + 1e-5).sqrt()
    return torch.tanh(p[1] * normal)


def graph_convolution(z: Tensor, p: Tensor) -> Tensor:
    """Rows are nodes of a ring with chords; each takes from its neighbours."""
    rows = z.shape[0]
    ring = torch.eye(rows).roll(1, 0) + torch.eye(rows).roll(-1, 0) + torch.eye(rows).roll(3, 0)
    near = (ring / ring.sum(1, keepdim=True)).to(z)
    return torch.tanh(near @ _mixed(z, p[0], 63) + p[1] * seeded(64, *z.shape).to(z))


def attention_over_rows(z: Tensor, p: Tensor) -> Tensor:
    """Each row attends to all rows."""
    queries, keys, values = (_mixed(z, torch.ones_like(p[0]), seed) for seed in (65, 66, 67))
    mixed = torch.softmax(queries @ keys.mT / z.shape[-1] ** 0.5, -1) @ values
    return torch.tanh(p[0] * mixed + p[1] * seeded(68, *z.shape).to(z))


def permutation(z: Tensor, p: Tensor) -> Tensor:
    """Each row from the one before it, the first from the last: no row has anything of itself."""
    return p[0] * z.roll(1, 0) + p[1] * columns(vector(1, 2, 3, 4, 5).to(z), vector(0, 1, 0, 1, 0).to(z))


def contrast(z: Tensor, p: Tensor) -> Tensor:
    """Rows push each other apart in proportion to their likeness, towards their own inputs."""
    alike = torch.softmax(z @ z.mT / p[1], -1)
    return p[0] * (z - alike @ z) + seeded(69, *z.shape).to(z)


def _permutation_answer(gain: float) -> Tensor:
    offset = columns(vector(1, 2, 3, 4, 5), vector(0, 1, 0, 1, 0))
    shift = torch.eye(5, dtype=torch.float64).roll(1, 0)
    return torch.linalg.solve(torch.eye(5, dtype=torch.float64) - gain * shift, offset)


def _zeros(rows: int, n: int) -> Tensor:
    return torch.zeros(rows, n, dtype=torch.float64)


COUPLED = (
    Problem("batch norm", "Ioffe and Szegedy 2015", batch_norm, _zeros(6, 4), vector(0.4, 0.8), coupled=True),
    Problem("graph convolution", "Gu et al. 2020", graph_convolution, _zeros(7, 4), vector(0.9, 1), coupled=True),
    Problem("attention over rows", "Vaswani et al. 2017", attention_over_rows, _zeros(5, 4), vector(0.9, 1),
            coupled=True),
    Problem("permutation of rows", "our own", permutation, _zeros(5, 2), vector(0.8, 1), coupled=True, unique=True,
            answer=_permutation_answer(0.8)),
    Problem("contrast in the batch", "our own", contrast, _zeros(5, 4), vector(0.5, 2), coupled=True),
)  # fmt: skip
