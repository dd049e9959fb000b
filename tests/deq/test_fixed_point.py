"""`fixed_point`: what happens on failure, and what it returns without gradients."""

from __future__ import annotations

import pytest
import torch

import equilibria as eq
from problems import affine, without_fixed_point


def test_raises_by_default_and_hands_over_the_solution():
    with pytest.raises(eq.ConvergenceError, match="worst residual") as caught:
        eq.fixed_point(without_fixed_point, torch.zeros(2, 2))
    assert caught.value.solution is not None
    assert caught.value.solution.status is not eq.Status.CONVERGED


def test_warns_on_request():
    with pytest.warns(eq.ConvergenceWarning, match="evaluations"):
        eq.fixed_point(without_fixed_point, torch.zeros(2, 2), on_failure="warn")


def test_ignores_on_request_and_still_reports():
    solution = eq.fixed_point(without_fixed_point, torch.zeros(2, 2), on_failure="ignore")
    assert solution.status is not eq.Status.CONVERGED
    assert not bool(solution.converged.any())


def test_an_unknown_reaction_is_an_error():
    with pytest.raises(ValueError, match="on_failure"):
        eq.fixed_point(without_fixed_point, torch.zeros(2, 2), on_failure="retry")  # type: ignore[arg-type]


def test_without_gradients_only_the_solver_runs():
    f = affine(radius=0.5)
    calls = 0

    def counted(z):
        nonlocal calls
        calls += 1
        return f(z)

    with torch.no_grad():
        solution = eq.fixed_point(counted, f.start, eq.Picard(tol=1e-6))
    assert calls == solution.evaluations == len(solution.trace)
    assert not solution.value.requires_grad
    torch.testing.assert_close(solution.value, f.answer, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("gradient", [eq.Unrolled(2), eq.Reversible(2), eq.Phantom(2)])
def test_without_gradients_steps_for_a_gradient_are_not_taken(gradient):
    f, solver = affine(radius=0.5), eq.Picard(tol=1e-6)
    with torch.no_grad():
        solution = eq.fixed_point(f, f.start, solver, gradient)
    assert solution.evaluations == solver.solve(f, f.start).evaluations > 2
    torch.testing.assert_close(solution.value, f.answer, rtol=1e-4, atol=1e-4)


def test_evaluations_count_every_application_of_the_map():
    f = affine(radius=0.5)
    calls = 0

    def counted(z):
        nonlocal calls
        calls += 1
        return f(z)

    solution = eq.fixed_point(counted, f.start, eq.Picard(tol=0.0, max_evaluations=4), eq.Phantom(3), "ignore")
    assert calls == solution.evaluations == 4 + 3 + 1


class TestOverrides:
    """`tol` and `max_evaluations` of one call."""

    def test_take_the_place_of_the_solvers_and_leave_it_as_it_was(self):
        f, solver = affine(radius=0.5), eq.Picard(tol=1e-3, max_evaluations=100)
        plain = eq.fixed_point(f, f.start, solver)
        tight = eq.fixed_point(f, f.start, solver, tol=1e-6)
        short = eq.fixed_point(f, f.start, solver, on_failure="ignore", max_evaluations=3)
        assert tight.tolerance == 1e-6
        assert float(tight.residual.max()) <= 1e-6 < float(plain.residual.max())
        assert short.evaluations == 3 + 1 < plain.evaluations < tight.evaluations
        assert (solver.tol, solver.max_evaluations) == (1e-3, 100)

    @pytest.mark.parametrize("training", [True, False])
    def test_reach_the_layers_solver_in_both_modes(self, training):
        layer = eq.DEQ(torch.nn.Tanh(), eq.Picard(), eval_solver=eq.Anderson(), on_failure="ignore").train(training)
        z0 = torch.ones(2, 3)
        assert layer(z0, tol=1e-9, max_evaluations=2).evaluations == 2 + 1
        assert layer(z0, tol=0.5).tolerance == 0.5
        assert list(layer(z0, max_evaluations=4, iterates=[1]).iterates) == [1]

    @pytest.mark.parametrize(("option", "value"), [("tol", -1.0), ("max_evaluations", 0)])
    def test_impossible_ones_are_named(self, option, value):
        with pytest.raises(ValueError, match=rf"{option} must be at least .*found {value}"):
            eq.fixed_point(torch.tanh, torch.ones(1, 1), **{option: value})


GRADIENTS_OF_ALL = [
    *(eq.Guarded(eq.GMRES(tol=1e-8)), eq.Implicit(), eq.Implicit(memory=eq.AdjointMemory()), eq.Neumann(40)),
    eq.Switching(eq.Implicit(eq.Picard(tol=1e-8, max_evaluations=100))),
]


@pytest.mark.parametrize("gradient", GRADIENTS_OF_ALL, ids=lambda way: type(way).__name__)
def test_a_state_that_is_one_group_needs_no_shared_dimension(gradient):
    theta = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    solver = eq.Anderson(tol=1e-10, scope="all")
    number = eq.fixed_point(lambda z: theta * torch.tanh(z) + 1, theta.new_zeros(()), solver, gradient)
    z = number.value.detach()
    (found,) = torch.autograd.grad(number.value, theta)
    expected = torch.tanh(z) / (1 - theta.detach() * (1 - torch.tanh(z) ** 2))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=0.0)

    mixed = eq.fixed_point(
        lambda z: {"a": theta * torch.tanh(z["a"]) + z["b"].sum(), "b": 0.1 * z["b"] + theta},
        {"a": theta.new_zeros(3), "b": theta.new_zeros(2, 2)},
        solver,
        gradient,
    )
    (found,) = torch.autograd.grad(mixed.value["a"].sum(), theta)
    a = mixed.value["a"].detach()
    slope = 4 / 0.9  # of the sum of b
    expected = ((torch.tanh(a) + slope) / (1 - theta.detach() * (1 - torch.tanh(a) ** 2))).sum()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=0.0)


@pytest.mark.parametrize("of", [torch.zeros, torch.ones], ids=["solved", "at the solution"])
def test_the_solution_is_not_the_start_that_the_caller_has(of):
    z0 = of(2, 3)
    solution = eq.fixed_point(lambda z: 0.5 * z + 0.5, z0, eq.Picard(tol=1e-6), iterates=[0])
    before, iterate = solution.value.clone(), solution.iterates[0].clone()
    z0.fill_(7.0)
    assert torch.equal(solution.value, before)
    assert torch.equal(solution.iterates[0], iterate)


def test_a_leaf_ten_million_times_smaller_than_another_is_judged_as_well():
    def f(z):
        return {"large": 0.5 * z["large"] + 0.5e8, "small": 0.9 * z["small"] + 0.01}

    z0 = {"large": torch.full((1, 4), 0.9e8), "small": torch.zeros(1, 4)}
    for solver in (eq.Picard(max_evaluations=200), eq.Anderson(), eq.Broyden()):
        solution = eq.fixed_point(f, z0, solver)
        torch.testing.assert_close(solution.value["small"], torch.full((1, 4), 0.1), rtol=1e-2, atol=0.0)


def test_a_jacobian_free_gradient_inside_functional_transforms():
    def solve(c):
        return eq.fixed_point(lambda z: 0.5 * torch.tanh(z) + c, torch.zeros(1, 4), gradient=eq.JacobianFree()).value

    c = torch.randn(3, 1, 4)
    torch.testing.assert_close(torch.func.vmap(solve)(c), torch.stack([solve(one) for one in c]))
    found = torch.func.grad(lambda c: solve(c).sum())(c[0])
    torch.testing.assert_close(found, torch.ones(1, 4))
