"""What grows without coming nearer to a solution has none, however small its relative residual."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

import equilibria as eq
from equilibria.solvers import Picard, Status
from equilibria.solvers.base import Draft


def adding(z: Tensor) -> Tensor:
    """No fixed point; where `z` has grown its relative residual is as small as one likes."""
    return z + 1e3


@pytest.mark.parametrize("scope", ["sample", "token"])
@pytest.mark.parametrize(
    "gradient", [eq.Implicit(), eq.Phantom(), eq.Switching(), eq.Neumann(), eq.Unrolled(1200)], ids=repr
)
@pytest.mark.parametrize("fallback", [None, Picard(damping=0.5)], ids=["alone", "fallback"])
def test_growth_is_not_taken_for_convergence(gradient, fallback, scope):
    if fallback is not None:
        fallback = replace(fallback, scope=scope)
    solver = Picard(max_evaluations=2000, scope=scope, fallback=fallback)
    x = torch.zeros((), requires_grad=True)
    solution = eq.fixed_point(lambda z: adding(z) + x, torch.zeros(2, 1, 3), solver, gradient, on_failure="ignore")
    assert fallback is not None or float(solution.residual.max()) <= solver.tol
    assert solution.status is Status.DIVERGED


@pytest.mark.parametrize("shape", [(2, 4), (2, 1, 4), (2, 3, 4)], ids=str)
def test_a_solution_far_away_is_not_called_divergence(shape):
    scope = "sample" if len(shape) == 2 else "token"
    short = Picard(max_evaluations=30, scope=scope).solve(lambda z: 0.9 * z + 1e4, torch.zeros(shape))
    assert short.status is Status.MAX_EVALUATIONS
    whole = Picard(max_evaluations=100, scope=scope).solve(lambda z: 0.9 * z + 1e4, torch.zeros(shape))
    assert whole.status is Status.CONVERGED


def test_a_draft_that_diverged_is_not_where_a_solve_starts():
    solver = Picard(tol=1e-2, max_evaluations=300, draft=Draft(tol=1e-2, max_evaluations=300))
    assert solver.solve(adding, torch.zeros(2, 3)).status is Status.DIVERGED


def test_a_phantom_gradient_after_an_overflow_does_not_claim_a_finite_value():
    ten = torch.full((1, 2), 10.0)
    solution = eq.fixed_point(lambda z: z**2, ten, Picard(), gradient=eq.Phantom(), on_failure="ignore")
    assert solution.status is Status.NON_FINITE
    assert "the solve kept" in solution.explain()
