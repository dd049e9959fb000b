"""Depths: which solver and gradient they use when, what they ask to be added to the loss, what they report."""

from __future__ import annotations

from dataclasses import replace

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
    [
        (lambda: Equilibrium(residual_penalty=-1.0), "residual_penalty"),
        (lambda: Equilibrium(jacobian_penalty=-1.0), "jacobian_penalty"),
        (lambda: Equilibrium(states_every=0), "states_every"),
        (lambda: UnrolledDepth(0), "applications"),
        (lambda: UnrolledDepth(states_every=0), "states_every"),
    ],
)
def test_impossible_options_are_errors_that_name_them(build, name):
    with pytest.raises(ValueError, match=name):
        build()


def test_unrolled_depth_returns_the_states_on_the_way_in_training():
    z0 = torch.zeros(1, 1, 1)
    for checkpoint in (False, True):
        reached = UnrolledDepth(7, checkpoint, states_every=3).reach(lambda z: z + 1, z0, training=True)
        assert [state.item() for state in reached.states] == [3.0, 6.0]
        assert reached.argument is not None
        assert reached.argument.item() == 6.0
    assert len(UnrolledDepth(6, states_every=3).reach(lambda z: z + 1, z0, training=True).states) == 1
    assert UnrolledDepth(7, states_every=3).reach(lambda z: z + 1, z0, training=False).states == ()


@pytest.mark.parametrize("gradient", [eq.Phantom(steps=1), eq.Implicit(), eq.Unrolled(steps=9)])
def test_an_equilibrium_returns_the_states_on_the_way_in_training(gradient):
    f = causal_attention(gain=0.5)
    inputs = f.injection.clone().requires_grad_()
    closed, z0 = type(f)(f.weights, inputs, f.gain), torch.zeros_like(f.injection)
    solver = eq.Picard(tol=0.0, max_evaluations=10, scope="prefix")
    depth = Equilibrium(solver=solver, gradient=gradient, states_every=4)
    states = depth.reach(closed, z0, training=True).states
    assert len(states) == 2
    expected, ahead = z0, gradient.steps if isinstance(gradient, eq.Phantom) else 0
    for number in range(9):
        expected = f(expected)
        for state, wanted in zip(states, (4, 8), strict=True):
            if number + 1 == wanted + ahead:
                torch.testing.assert_close(state, expected)
    unsolved = Equilibrium(solver=eq.Picard(max_evaluations=3), gradient=eq.Unrolled(steps=9), states_every=4)
    for unsolving in (eq.Unrolled(steps=9), eq.Reversible(steps=9)):
        assert len(replace(unsolved, gradient=unsolving).reach(closed, z0, training=True).states) == 2
    drafted = replace(solver, max_evaluations=4, draft=eq.Draft(tol=1e-30, max_evaluations=6))
    if isinstance(gradient, eq.Implicit):
        assert len(replace(depth, solver=drafted).reach(closed, z0, training=True).states) == 2
    for state in states:
        (slope,) = torch.autograd.grad(state.sum(), inputs, retain_graph=True)
        assert slope.abs().max() > 0
    assert depth.reach(closed, z0, training=False).states == ()
    with torch.no_grad():
        assert depth.reach(closed, z0, training=True).states == ()


def test_the_jacobian_penalty_is_the_weighted_estimate_at_the_solution():
    f = causal_attention(gain=0.5)
    inputs = f.injection.clone().requires_grad_()
    closed, z0 = type(f)(f.weights, inputs, f.gain), torch.zeros_like(f.injection)
    plain = Equilibrium(residual_penalty=0.0)
    both = Equilibrium(residual_penalty=1.5, jacobian_penalty=2.0)
    solution = plain.reach(closed, z0, training=True).solution
    assert solution is not None
    torch.manual_seed(3)
    estimate = eq.jacobian_penalty(closed, solution.value)
    torch.manual_seed(3)
    penalty = both.reach(closed, z0, training=True).penalty
    assert penalty is not None
    torch.testing.assert_close(penalty, 1.5 * eq.residual_penalty(solution) + 2.0 * estimate, check_dtype=False)
    (slope,) = torch.autograd.grad(2.0 * estimate, inputs)
    (found,) = torch.autograd.grad(penalty - 1.5 * eq.residual_penalty(solution), inputs)
    torch.testing.assert_close(found, slope, rtol=1e-5, atol=1e-8)
    assert Equilibrium(residual_penalty=0.0, jacobian_penalty=2.0).reach(closed, z0, training=False).penalty is None


@pytest.mark.parametrize(
    "gradient", [eq.Phantom(steps=3), eq.Unrolled(steps=2), eq.Reversible(steps=2), eq.Switching(), eq.Implicit()]
)
def test_in_evaluation_gradients_do_not_change_what_is_returned_and_are_exact(gradient):
    f = causal_attention(gain=0.5)
    inputs = f.injection.clone().requires_grad_()
    closed, z0 = type(f)(f.weights, inputs, f.gain), torch.zeros_like(f.injection)
    solver = eq.Picard(tol=1e-9, max_evaluations=100, scope="prefix")
    depth = Equilibrium(gradient=gradient, eval_solver=solver)
    with torch.no_grad():
        without = depth.reach(closed, z0, training=False)
    found = depth.reach(closed, z0, training=False)
    torch.testing.assert_close(found.state, without.state)  # not equal: with gradients other kernels may compute
    assert found.solution is not None
    assert found.solution.status is eq.Status.CONVERGED
    unrolled = z0
    for _ in range(100):
        unrolled = closed(unrolled)
    weights = torch.arange(z0.numel()).view_as(z0)
    slopes = [torch.autograd.grad((state * weights).sum(), inputs)[0] for state in (found.state, unrolled)]
    torch.testing.assert_close(*slopes, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("options", [{"solver": None}, {"eval_solver": None}, {"gradient": None}])
def test_none_is_no_part_of_an_equilibrium(options):
    with pytest.raises(TypeError, match=r"must be an object such as .* found None"):
        Equilibrium(**options)


def test_states_are_those_of_a_fallback_too():
    solver = eq.Picard(
        tol=1e-6, max_evaluations=4, fallback=eq.Picard(max_evaluations=60, scope="prefix"), scope="prefix"
    )
    shift = torch.ones(1, requires_grad=True)
    depth = Equilibrium(solver=solver, gradient=eq.Implicit(), states_every=8)
    reached = depth.reach(lambda z: 0.7 * z + shift, torch.zeros(1, 2, 3), training=True)
    assert reached.solution is not None
    assert reached.solution.evaluations > 30
    assert len(reached.states) == len(range(8, 64, 8))
    torch.testing.assert_close(reached.states[-1], reached.state)
