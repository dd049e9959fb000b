"""Which gradient a solve gets is read off its residuals, and it is exactly that gradient."""

from __future__ import annotations

import pytest
import torch

import equilibria as eq
from equilibria.gradients import Gradient
from equilibria.solvers import Solver
from problems import causal_attention
from ways import tanh_map, tanh_problem

SWITCHING = eq.Switching(otherwise=eq.Phantom(steps=3, checkpoint=True))


def attached(gradient: Gradient, solver: Solver) -> tuple[eq.Solution, tuple[torch.Tensor, ...]]:
    weight, inputs = tanh_problem()
    solution = eq.fixed_point(tanh_map(weight, inputs), torch.zeros_like(inputs), solver, gradient, "ignore")
    return solution, torch.autograd.grad(solution.value.square().sum(), (weight, inputs))


@pytest.mark.parametrize("solver", [eq.Picard(tol=1e-3), eq.Anderson(tol=1e-3)], ids=["picard", "anderson"])
def test_a_solve_that_converged_gets_the_implicit_gradient(solver: Solver):
    solution, found = attached(SWITCHING, solver)
    other, expected = attached(SWITCHING.converged, solver)
    assert (solution.status, solution.evaluations) == (eq.Status.CONVERGED, other.evaluations)
    torch.testing.assert_close(solution.value, other.value, rtol=0, atol=0)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert solution.adjoint.evaluations == other.adjoint.evaluations > 0


@pytest.mark.parametrize("method", [eq.Picard, eq.Anderson])
def test_a_solve_that_did_not_gets_the_phantom_gradient(method: type[eq.Picard | eq.Anderson]):
    solver = method(tol=1e-9, max_evaluations=4)
    solution, found = attached(SWITCHING, solver)
    other, expected = attached(eq.Phantom(steps=3), solver)
    assert solution.evaluations == other.evaluations == 4 + 3 + 1
    torch.testing.assert_close(solution.value, other.value, rtol=0, atol=0)
    torch.testing.assert_close(found, expected)


def test_the_penalty_is_of_the_end_of_the_solve_either_way():
    f = causal_attention()
    z0 = torch.zeros_like(f.injection)
    for tol in (1e-9, 1.0):
        solver = eq.Picard(tol=tol, max_evaluations=4, scope="prefix")
        value = eq.fixed_point(f, z0, solver, SWITCHING, "ignore")
        with torch.no_grad():
            state, end = z0, f(z0)
            for _ in range(4 if tol < 1 else value.evaluations - 1):
                state, end = end, f(end)
        residual = torch.linalg.vector_norm(end - state, dim=-1) / torch.linalg.vector_norm(end, dim=-1)
        torch.testing.assert_close(eq.residual_penalty(value), residual.mean(), rtol=1e-5, atol=1e-8)


def test_the_share_of_groups_decides():
    gain = torch.tensor([[0.01], [0.01], [0.01], [0.99]], requires_grad=True)
    solver = eq.Picard(tol=1e-3, max_evaluations=5)

    def tracked(share: float) -> bool:
        gradient = eq.Switching(share=share)
        solution = eq.fixed_point(lambda z: gain * z + 1, torch.zeros(4, 1), solver, gradient, "ignore")
        return solution.evaluations > 5

    assert not tracked(0.75)
    assert tracked(0.76)


def test_iterates_come_with_either_gradient():
    weight, inputs = tanh_problem()
    for tol in (1e-9, 1e-1):
        solver = eq.Picard(tol=tol, max_evaluations=4)
        f = tanh_map(weight, inputs)
        solution = eq.fixed_point(f, torch.zeros_like(inputs), solver, SWITCHING, "ignore", iterates=[1, 2])
        assert sorted(solution.iterates) == [1, 2]
        assert all(state.requires_grad for state in solution.iterates.values())


@pytest.mark.parametrize("share", [0.0, -1.0, 1.5])
def test_an_impossible_share(share: float):
    with pytest.raises(ValueError, match="share must be"):
        eq.Switching(share=share)


@pytest.mark.parametrize("budget", [3, 200])
def test_either_gradient_works_inside_transforms(budget: int):
    """The phantom gradient's default drops what its graph saves, by hooks that transforms do not take."""
    weight, inputs = (leaf.detach() for leaf in tanh_problem())
    solver = eq.Picard(tol=1e-6, max_evaluations=budget)

    def loss(weight: torch.Tensor) -> torch.Tensor:
        start = torch.zeros_like(inputs)
        return eq.fixed_point(tanh_map(weight, inputs), start, solver, eq.Switching(), "ignore").value.square().sum()

    tracked = weight.clone().requires_grad_()
    (expected,) = torch.autograd.grad(loss(tracked), tracked)
    torch.testing.assert_close(torch.func.grad(loss)(weight), expected)
