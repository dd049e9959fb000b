"""Depths: which solver and gradient they use when, what they ask to be added to the loss, what they report."""

from __future__ import annotations

import pytest
import torch

import equilibria as eq
from equilibria.depths import Equilibrium, UnrolledDepth
from problems import causal_attention


def test_training_and_evaluation_have_their_own_solvers():
    f = causal_attention()
    z0 = torch.zeros_like(f.injection)
    depth = Equilibrium(
        solver=eq.Picard(tol=0.0, max_evaluations=2, scope="prefix"),
        gradient=eq.Phantom(steps=3),
        eval_solver=eq.Anderson(tol=1e-8, max_evaluations=60, scope="prefix"),
    )
    trained = depth.reach(f, z0, training=True).solution
    with torch.no_grad():
        evaluated = depth.reach(f, z0, training=False).solution
    assert trained is not None
    assert evaluated is not None
    assert trained.evaluations == 2 + 3 + 1
    assert evaluated.status is eq.Status.CONVERGED
    assert evaluated.tolerance == 1e-8


def test_the_penalty_is_the_weighted_residual_penalty_and_only_in_training():
    f = causal_attention()
    inputs = f.injection.clone().requires_grad_()
    closed = type(f)(f.weights, inputs, f.gain)
    z0 = torch.zeros_like(f.injection)
    reached = Equilibrium(residual_penalty=3.0).reach(closed, z0, training=True)
    assert reached.solution is not None
    assert reached.penalty is not None
    torch.testing.assert_close(reached.penalty, 3.0 * eq.residual_penalty(reached.solution))
    (slope,) = torch.autograd.grad(reached.penalty, inputs)
    assert slope.abs().max() > 0
    assert Equilibrium(residual_penalty=0.0).reach(closed, z0, training=True).penalty is None
    assert Equilibrium(residual_penalty=3.0).reach(closed, z0, training=False).penalty is None


def test_an_unconverged_solve_is_reported_not_raised():
    f = causal_attention(gain=3.0)
    depth = Equilibrium(eval_solver=eq.Picard(tol=1e-9, max_evaluations=2, scope="prefix"))
    with torch.no_grad():
        solution = depth.reach(f, torch.zeros_like(f.injection), training=False).solution
    assert solution is not None
    assert solution.status is eq.Status.MAX_EVALUATIONS


def test_unrolled_depth_applies_the_map_as_often_as_it_says():
    reached = UnrolledDepth(applications=4).reach(lambda z: 2 * z + 1, torch.zeros(1, 1, 1), training=True)
    assert reached.state.item() == 15.0
    assert reached.solution is None
    assert reached.penalty is None


@pytest.mark.parametrize(
    ("build", "name"),
    [(lambda: Equilibrium(residual_penalty=-1.0), "residual_penalty"), (lambda: UnrolledDepth(0), "applications")],
)
def test_impossible_options_are_errors_that_name_them(build, name):
    with pytest.raises(ValueError, match=name):
        build()
