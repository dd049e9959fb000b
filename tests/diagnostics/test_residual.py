"""The residual penalty against the residual it stands for, and what it teaches."""

from __future__ import annotations

import pytest
import torch

import equilibria as eq
from problems import affine, causal_attention


@pytest.mark.parametrize("scope", ["sample", "prefix"])
def test_of_an_unrolled_gradient_is_the_residual_of_the_last_but_one_iterate(scope):
    f = causal_attention()
    z0 = torch.zeros_like(f.injection)
    solver = eq.Picard(tol=0.0, max_evaluations=3, scope=scope)
    solution = eq.fixed_point(f, z0, solver, eq.Phantom(steps=4), "ignore")
    shorter = eq.fixed_point(f, z0, solver, eq.Phantom(steps=3), "ignore")
    torch.testing.assert_close(eq.residual_penalty(solution).float(), shorter.residual.mean())


def test_descending_it_makes_a_map_converge_faster():
    f = affine(radius=0.95)
    gain = torch.ones((), dtype=torch.float64, requires_grad=True)

    def solve():
        solver = eq.Picard(tol=0.0, max_evaluations=5)
        return eq.fixed_point(lambda z: f(gain * z), f.start, solver, eq.Phantom(steps=5), "ignore")

    first = solve()
    for _ in range(50):
        (gradient,) = torch.autograd.grad(eq.residual_penalty(solve()), gain)
        gain.data -= 0.1 * gradient
    assert solve().residual.max() < 0.5 * first.residual.max()


@pytest.mark.parametrize("above", [0.0, 1e-3, 10.0])
def test_only_what_is_above_a_limit_counts(above: float):
    f = causal_attention()
    solver = eq.Picard(tol=0.0, max_evaluations=3, scope="prefix")
    z0 = torch.zeros_like(f.injection)
    solution = eq.fixed_point(f, z0, solver, eq.Phantom(steps=4), "ignore")
    residual = eq.fixed_point(f, z0, solver, eq.Phantom(steps=3), "ignore").residual
    expected = torch.relu(residual - above).mean()
    torch.testing.assert_close(eq.residual_penalty(solution, above).float(), expected)
    assert (expected > 0) == (above < 10)


def test_without_a_tracked_evaluation_it_says_so():
    f = affine(radius=0.5)
    with torch.no_grad():
        solution = eq.fixed_point(f, f.start, eq.Anderson(tol=1e-3))
    with pytest.raises(ValueError, match="gradients on"):
        eq.residual_penalty(solution)


def test_of_an_implicit_gradient_is_its_residual():
    f = affine(radius=0.5)
    offset = f.offset.clone().requires_grad_()
    solution = eq.fixed_point(type(f)(f.matrix, offset), f.start, eq.Picard(tol=1e-2))
    penalty = eq.residual_penalty(solution)
    torch.testing.assert_close(penalty.float(), solution.residual.mean())
    assert torch.autograd.grad(penalty, offset)[0].abs().max() > 0
