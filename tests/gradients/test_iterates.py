"""Iterates kept beside the solution, and the loss along the way that they are for (arXiv:2204.08442)."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import equilibria as eq
from equilibria.gradients import Gradient
from equilibria.solvers import Solver
from ways import ALL, EXACT, SOLVERS, tanh_map, tanh_problem, tight

PICARD: Solver = eq.Picard(tol=1e-11, max_evaluations=1000)


def plain(weight, inputs, steps):
    z = torch.zeros_like(inputs)
    for _ in range(steps):
        z = torch.tanh(z @ weight + inputs)
    return z


def solve(weight, inputs, gradient: Gradient, iterates, solver: Solver = PICARD):
    f = tanh_map(weight, inputs)
    return eq.fixed_point(f, torch.zeros_like(inputs), solver, gradient, iterates=iterates)


@pytest.mark.parametrize("gradient", [EXACT, eq.Neumann(3), eq.JacobianFree(), eq.Unrolled(80)])
def test_iterate_k_is_what_k_evaluations_give(gradient: Gradient):
    solution = solve(*tanh_problem(), gradient, [0, 1, 4])
    assert list(solution.iterates) == [0, 1, 4]
    for number, state in solution.iterates.items():
        torch.testing.assert_close(state, plain(*tanh_problem(), number))


def test_a_phantom_iterate_moves_on_by_the_tracked_steps():
    solution = solve(*tanh_problem(), eq.Phantom(steps=3), [2])
    torch.testing.assert_close(solution.iterates[2], plain(*tanh_problem(), 5))


@pytest.mark.parametrize("name", [name for name in ALL if not name.startswith(("unrolled", "reversible"))])
def test_every_iterate_has_the_gradient_of_its_kind_at_its_place(name: str):
    """The gradient at a kept iterate is that of a solution which the solver would have returned there."""
    solver = tight(SOLVERS["broyden"], torch.float64)
    weight, inputs = tanh_problem()
    kept = solve(weight, inputs, ALL[name], [3], solver).iterates[3]
    found = torch.autograd.grad(kept.square().sum(), (weight, inputs))
    start = solve(weight, inputs, eq.JacobianFree(), [3], solver).iterates[3].detach()
    if name == "reused":  # its pairs are those of the whole solve, and cannot be had from one that begins here
        assert all(bool(torch.isfinite(part).all()) for part in found)
        return
    f = tanh_map(weight, inputs)
    if name.startswith("phantom"):
        gradient = ALL[name]
        assert isinstance(gradient, eq.Phantom)
        z = start
        for _ in range(gradient.steps):
            z = torch.lerp(z, f(z), gradient.damping)
    else:
        here = replace(solver, tol=1e9, max_evaluations=1)
        z = eq.fixed_point(f, start, here, ALL[name]).value
    expected = torch.autograd.grad(z.square().sum(), (weight, inputs))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)


def test_an_unrolled_iterate_is_backpropagated_through_its_own_steps():
    weight, inputs = tanh_problem()
    kept = solve(weight, inputs, eq.Unrolled(steps=80), [4]).iterates[4]
    expected = torch.autograd.grad(plain(weight, inputs, 4).sum(), weight)[0]
    torch.testing.assert_close(torch.autograd.grad(kept.sum(), weight)[0], expected)


def test_correction_weighs_later_iterates_more():
    solution = solve(*tanh_problem(), EXACT, [1, 3])
    total = eq.fixed_point_correction(solution, lambda z: z.square().sum(), decay=0.5)
    terms = [solution.value, solution.iterates[3], solution.iterates[1]]
    expected = sum(0.5**age * z.square().sum() for age, z in enumerate(terms))
    torch.testing.assert_close(total, expected)


@pytest.mark.parametrize("name", ["implicit", "phantom", "neumann", "switching", "unrolled"])
def test_an_iterate_after_convergence_is_the_solution_with_its_gradient(name: str):
    weight, inputs = tanh_problem()
    solution = solve(weight, inputs, ALL[name], [2, 900, 901])
    assert list(solution.iterates) == [2, 900, 901]
    found = torch.autograd.grad(solution.iterates[900].square().sum(), weight, retain_graph=True)[0]
    expected = torch.autograd.grad(solution.value.square().sum(), weight, retain_graph=True)[0]
    torch.testing.assert_close(found, expected)
    # So the number of terms of a loss along the way does not depend on when a solve converges.
    total = eq.fixed_point_correction(solution, lambda z: z.square().sum(), decay=0.5)
    terms = [solution.value] * 3 + [solution.iterates[2]]
    torch.testing.assert_close(total, sum(0.5**age * z.square().sum() for age, z in enumerate(terms)))


def test_an_iterate_that_a_failed_solve_did_not_come_to_is_left_out():
    weight, inputs = tanh_problem()
    solver = eq.Picard(tol=1e-12, max_evaluations=3)
    f = tanh_map(weight, inputs)
    solution = eq.fixed_point(f, torch.zeros_like(inputs), solver, EXACT, "ignore", iterates=[2, 3, 900])
    assert list(solution.iterates) == [2, 3]


def test_kept_iterates_bound_the_memory_not_the_number_of_evaluations():
    def bytes_with(iterates, budget):
        weight, inputs = tanh_problem()
        solver = eq.Picard(tol=0.0, max_evaluations=budget)
        f = tanh_map(weight, inputs)
        return eq.saved_bytes(
            lambda: eq.fixed_point(f, torch.zeros_like(inputs), solver, EXACT, "ignore", iterates=iterates),
            exclude=[weight, inputs],
        )

    none, two = bytes_with([], 40), bytes_with([3, 5], 40)
    assert two == 3 * none == bytes_with([3, 5], 10)


def test_impossible_numbers_are_named():
    with pytest.raises(ValueError, match=r"at least 0; found \[-1, 2\]"):
        solve(*tanh_problem(), EXACT, [2, -1])
    with pytest.raises(ValueError, match="decay"):
        eq.fixed_point_correction(solve(*tanh_problem(), EXACT, []), torch.sum, decay=0.0)


def test_without_gradients_they_are_returned_as_well():
    with torch.no_grad():
        solution = solve(*tanh_problem(), EXACT, [2])
    torch.testing.assert_close(solution.iterates[2], plain(*tanh_problem(), 2).detach())


@pytest.mark.parametrize("iterates", [[1, 5, 7]])
def test_iterates_of_a_fallback_are_its_own(iterates: list[int]):
    torch.manual_seed(0)
    weight = 0.9 * torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64))[0]
    x = torch.randn(2, 6, dtype=torch.float64)
    seen: list[torch.Tensor] = []

    def f(z: torch.Tensor) -> torch.Tensor:
        seen.append(z.clone())
        return z @ weight + x

    fallback = eq.Broyden(max_evaluations=60)
    solver = eq.Picard(tol=1e-8, max_evaluations=3, fallback=fallback)
    found = solver.solve(f, torch.zeros_like(x), iterates=iterates)
    assert found.evaluations > max(iterates)
    for number in iterates:
        torch.testing.assert_close(found.iterates[number], seen[number])
