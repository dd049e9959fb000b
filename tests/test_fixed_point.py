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
