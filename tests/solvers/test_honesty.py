"""What a solve says of itself is so: budgets, scales, growth, leaves of different size, and maps without a value."""

from __future__ import annotations

import pickle
from dataclasses import replace

import pytest
import torch

import equilibria as eq
from equilibria.solvers import Solver, Status
from equilibria.solvers.residual import relative_residual

EVERY: list[Solver] = [eq.Picard(), eq.Picard(damping=0.5), eq.Anderson(), eq.Broyden(), eq.NewtonKrylov()]
SCOPES = ["sample", "token", "prefix", "all"]


def named(solver: Solver) -> str:
    return type(solver).__name__


def in_scope(solver: Solver, scope: str) -> Solver:
    if isinstance(solver, eq.NewtonKrylov) and scope in ("token", "prefix"):
        pytest.skip("NewtonKrylov solves samples or the whole state")
    return replace(solver, scope=scope)


@pytest.mark.parametrize("solver", EVERY, ids=named)
@pytest.mark.parametrize("unit", [1e-12, 1e-25, 1.0, 1e20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_units_do_not_matter(solver, unit, dtype):
    solver = replace(solver, tol=1e-5, max_evaluations=100)

    def f(z):
        return 0.5 * z + unit * torch.cos(z / unit)

    found = solver.solve(f, torch.full((3, 4), unit, dtype=dtype))
    plain = solver.solve(lambda z: 0.5 * z + torch.cos(z), torch.ones(3, 4, dtype=dtype))
    assert found.status is plain.status is Status.CONVERGED
    torch.testing.assert_close(found.value / unit, plain.value, rtol=1e-4, atol=0)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("solver", EVERY, ids=named)
@pytest.mark.parametrize("tol", [1e-1, 3e-2, 1e-3])
@pytest.mark.parametrize("growing", [lambda z: z + 1.0, lambda z: z + torch.tanh(z) + 2.0, lambda z: 1.01 * z + 1.0])
def test_growth_alone_is_no_convergence(solver, scope, tol, growing):
    solver = replace(in_scope(solver, scope), tol=tol, max_evaluations=150)
    solution = eq.fixed_point(growing, torch.zeros(2, 3, 2), solver, on_failure="ignore")
    # Newton and its kin find the fixed point of the last map, −100, and may.
    if solution.status is Status.CONVERGED:
        value = solution.value
        torch.testing.assert_close(value, torch.full_like(value, -100.0), rtol=0.2, atol=0)
    assert bool(solution.converged.all()) == (solution.status is Status.CONVERGED)


@pytest.mark.parametrize("solver", EVERY, ids=named)
def test_a_small_leaf_counts_as_much_as_a_large_one(solver):
    def f(state):
        return {"large": 0.1 * state["large"] + 9e5, "small": 0.9 * state["small"] + 0.1}

    z0 = {"large": torch.zeros(2, 2), "small": torch.zeros(2, 2)}
    solution = eq.fixed_point(f, z0, replace(solver, tol=1e-4, max_evaluations=200))
    # A residual of 1e-4 of a map that contracts by 0.9 is an error of 1e-3.
    torch.testing.assert_close(solution.value["small"], torch.ones(2, 2), rtol=2e-3, atol=0)
    torch.testing.assert_close(solution.value["large"], torch.full((2, 2), 1e6), rtol=2e-3, atol=0)
    parts = [relative_residual(f(solution.value)[key], solution.value[key]) for key in ("large", "small")]
    torch.testing.assert_close(solution.residual, torch.stack(parts).amax(0), rtol=1e-2, atol=2e-7)


@pytest.mark.parametrize("solver", EVERY, ids=named)
@pytest.mark.parametrize("scope", SCOPES)
def test_a_budget_of_one_is_one_application(solver, scope):
    solver = replace(in_scope(solver, scope), tol=1e-9, max_evaluations=1)
    z0, f = torch.full((2, 3, 4), 2.0, dtype=torch.float64), torch.cos
    solution = eq.fixed_point(f, z0, solver, on_failure="ignore")
    damping = getattr(solver, "damping", 1.0)
    torch.testing.assert_close(solution.value, torch.lerp(z0, f(z0), damping))
    assert solution.evaluations == 2  # and one that measures it
    assert not bool(solution.converged.any())


@pytest.mark.parametrize("solver", EVERY, ids=named)
def test_a_map_without_a_value_is_given_up_after_two_evaluations(solver):
    start = eq.fixed_point(lambda z: 0.5 * z, torch.full((2, 3), torch.nan), solver, on_failure="ignore")
    value = eq.fixed_point(lambda z: z * torch.nan, torch.ones(2, 3), solver, on_failure="ignore")
    for solution in (start, value):
        assert solution.status is Status.NON_FINITE
        # A Newton step has looked at the derivative before it is known that the value is none.
        assert solution.evaluations <= (2 if not isinstance(solver, eq.NewtonKrylov) else 12)
    assert bool((value.value == 1).all())


def test_an_error_goes_to_another_process_with_its_figures():
    weight = torch.ones(1, requires_grad=True)
    with pytest.raises(eq.ConvergenceError) as caught:
        eq.fixed_point(lambda z: z + weight, torch.zeros(1, 2), eq.Picard(max_evaluations=3))
    sent = pickle.loads(pickle.dumps(caught.value))
    assert str(sent) == str(caught.value)
    assert sent.solution.status is caught.value.solution.status  # type: ignore[union-attr]
    torch.testing.assert_close(sent.solution.value, caught.value.solution.value.detach())  # type: ignore[union-attr]


def test_scope_all_has_one_residual_and_takes_leaves_of_any_shape():
    def f(state):
        a, b = state
        return 0.5 * a + b.mean(), 0.5 * torch.cos(b) + 0.1 * a.sum()

    solution = eq.fixed_point(f, (torch.zeros(3, 2), torch.zeros(4)), eq.Anderson(scope="all", tol=1e-6))
    assert solution.residual.shape == solution.converged.shape == (1,)
    for found, wanted in zip(f(solution.value), solution.value, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
