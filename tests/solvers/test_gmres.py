"""GMRES sample by sample: what a neighbour needs is no matter."""

from __future__ import annotations

import torch

import equilibria as eq
from equilibria.solvers import Iterate, Status


def solve(matrices: torch.Tensor, g: torch.Tensor, budget: int) -> Iterate:
    solver = eq.GMRES(tol=1e-6, max_evaluations=budget)
    return solver.solve(lambda z: (matrices @ z.unsqueeze(-1)).squeeze(-1) + g, g.clone())


def test_how_long_a_neighbour_takes_does_not_decide_on_a_sample():
    generator = torch.Generator().manual_seed(0)
    hard = 0.97 * torch.linalg.qr(torch.randn(12, 12, generator=generator))[0]
    settled = 0
    for _ in range(100):
        u, v = torch.randn(2, 12, 2, generator=generator)
        matrices, g = torch.stack([3 * u @ v.T, hard]), torch.randn(2, 12, generator=generator)
        alone, beside = solve(matrices[:1], g[:1], 10), solve(matrices, g, 10)
        torch.testing.assert_close(beside.value[0], alone.value[0], rtol=1e-5, atol=1e-5)
        assert beside.status is Status.MAX_EVALUATIONS
        assert bool(beside.residual[0] <= 1e-6) == (alone.status is Status.CONVERGED)
        settled += alone.status is Status.CONVERGED
    assert settled > 20


def test_a_budget_is_not_exceeded():
    generator = torch.Generator().manual_seed(1)
    matrix = 0.99 * torch.linalg.qr(torch.randn(1, 30, 30, generator=generator))[0]
    g = torch.randn(1, 30, generator=generator)
    for budget in range(2, 45):
        iterate = solve(matrix, g, budget)
        assert iterate.evaluations == len(iterate.trace) <= budget
