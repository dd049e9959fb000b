"""Failures seen in other libraries, each a test here under the name of what went wrong there."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from equilibria.solvers import Anderson, Broyden, NewtonKrylov, Picard, Solver, Status
from problems import affine, causal_attention, doubling, nan_for_sample_after, slow_diagonal, without_fixed_point

EVERY: list[Solver] = [Picard(), Anderson(), Broyden(), Broyden(halvings=2), NewtonKrylov(inner=4)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_1_an_absolute_ridge_made_anderson_slower_than_plain_iteration(dtype, scale):
    f = slow_diagonal(0.95)
    f = replace(f, offset=scale * f.offset)
    rough = Anderson(tol=1e-3, max_evaluations=200).solve(f, f.start.to(dtype))
    tight = Anderson(tol=1e-6, max_evaluations=200).solve(f, f.start.to(dtype))
    assert rough.status is tight.status is Status.CONVERGED
    assert rough.evaluations <= 45
    assert tight.evaluations <= 90


def test_3_a_stagnation_test_over_the_batch_stopped_a_batch_of_one_early():
    # The residual rests on a plateau for longer than the patience of the stall test, then falls.
    calls = 0

    def f(z):
        nonlocal calls
        calls += 1
        return 1.0 - z if calls < 25 else 0.5 * z + 0.25

    iterate = Picard(tol=1e-6, max_evaluations=80).solve(f, torch.zeros(1, 4))
    assert iterate.trace[20] > 0.27
    assert iterate.status is Status.CONVERGED


@pytest.mark.parametrize("solver", EVERY, ids=lambda solver: type(solver).__name__)
def test_4_a_mask_multiplied_onto_nan_destroyed_the_best_iterate(solver):
    iterate = replace(solver, tol=1e-9, max_evaluations=30).solve(nan_for_sample_after(1, calls=1), torch.zeros(3, 4))
    assert iterate.status is Status.NON_FINITE
    assert torch.equal(iterate.value[1], torch.zeros(4))
    assert float(iterate.residual[1]) == pytest.approx(1.0)
    torch.testing.assert_close(iterate.value[::2], torch.full((2, 4), 2.0), rtol=1e-4, atol=0)


@pytest.mark.parametrize("damping", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("method", [Picard, Anderson])
def test_5_a_damped_iteration_reported_the_damped_residual(method, damping):
    f = affine(radius=0.6)
    iterate = method(damping=damping, max_evaluations=7, tol=0.0).solve(f, f.start)
    value = iterate.value.reshape(f.start.shape)
    difference, size = (torch.linalg.vector_norm(x.flatten(1), dim=-1) for x in (f(value) - value, f(value)))
    torch.testing.assert_close(iterate.residual.double(), difference / size, rtol=1e-4, atol=0)


@pytest.mark.parametrize("solver", EVERY, ids=lambda solver: type(solver).__name__)
@pytest.mark.parametrize("budget", [1, 2, 7])
def test_8_results_depended_on_neighbours_in_the_batch(solver, budget):
    f = causal_attention(gain=1.2, batch=3)
    other = f.injection.clone()
    other[1:] *= 5.0
    z0 = torch.zeros_like(other)
    solver = replace(solver, tol=1e-3, max_evaluations=budget)
    one, two = (solver.solve(g, z0).value[0] for g in (f, replace(f, injection=other)))
    assert torch.equal(one, two)


@pytest.mark.parametrize("solver", [*EVERY, Anderson(history=1)], ids=lambda solver: type(solver).__name__)
@pytest.mark.parametrize("budget", [1, 2, 3])
def test_8_tiny_budgets_returned_the_start_without_an_error(solver, budget):
    f = affine(radius=0.9)
    iterate = replace(solver, tol=1e-6, max_evaluations=budget).solve(f, f.start, propose=True)
    assert iterate.status is Status.MAX_EVALUATIONS
    assert iterate.evaluations == budget
    assert float(iterate.proposal.abs().max()) > 0.0
    assert (float(iterate.value.abs().max()) > 0.0) == (budget > 1)
    assert bool((iterate.residual < 1.0).all()) == (budget > 1)


def test_8_anderson_with_a_history_of_one_accelerates():
    f = slow_diagonal(0.9)
    short = Anderson(history=1, tol=1e-5, max_evaluations=300).solve(f, f.start)
    plain = Picard(tol=1e-5, max_evaluations=300).solve(f, f.start)
    assert short.status is Status.CONVERGED
    assert short.evaluations < plain.evaluations


@pytest.mark.parametrize("method", [Picard, Anderson, Broyden, NewtonKrylov])
def test_8_unknown_options_were_swallowed(method):
    with pytest.raises(TypeError, match="max_iter"):
        method(max_iter=3)


@pytest.mark.parametrize("solver", EVERY, ids=lambda solver: type(solver).__name__)
@pytest.mark.parametrize("scope", ["sample", "prefix"])
def test_8_a_map_without_a_fixed_point_was_called_solved(solver, scope):
    if not isinstance(solver, NewtonKrylov):
        solver = replace(solver, scope=scope)
    iterate = replace(solver, tol=1e-6, max_evaluations=200).solve(without_fixed_point, torch.zeros(2, 3, 2))
    assert iterate.status not in (Status.CONVERGED, Status.MAX_EVALUATIONS)
    assert Picard(max_evaluations=200).solve(doubling, torch.zeros(2, 3, 2)).status is Status.DIVERGED
