"""The residual penalty against the residual it stands for, and what it teaches; the Jacobian penalty on known maps."""

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


def test_jacobian_penalty_is_the_mean_squared_entry_sum():
    f = affine(radius=0.8, batch=2)
    estimate = eq.jacobian_penalty(f, f.start, probes=400, generator=torch.Generator().manual_seed(0))
    expected = f.matrix.square().sum() / f.matrix.shape[0]
    torch.testing.assert_close(estimate.double(), expected, rtol=0.05, atol=0)


def test_jacobian_penalty_is_differentiable():
    gain = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    z = torch.randn(4, 3, dtype=torch.float64)
    penalty = eq.jacobian_penalty(lambda z: gain * z, z, probes=200, generator=torch.Generator().manual_seed(0))
    (slope,) = torch.autograd.grad(penalty, gain)
    assert penalty.item() == pytest.approx(0.49, rel=0.1)
    assert slope.item() == pytest.approx(1.4, rel=0.1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_the_penalty_is_in_the_precision_of_the_state_and_in_float32_at_least(dtype: torch.dtype):
    z, gain = torch.zeros(3, 50, dtype=dtype), 0.7
    penalty = eq.jacobian_penalty(lambda z: gain * z, z, probes=2, generator=torch.Generator().manual_seed(0))
    assert penalty.dtype == torch.promote_types(dtype, torch.float32)
    generator = torch.Generator().manual_seed(0)
    probes = [torch.randn(3, 50, dtype=dtype, generator=generator).double() for _ in range(2)]
    expected = sum(float((gain * probe).square().sum()) for probe in probes) / (2 * 150)
    assert penalty.item() == pytest.approx(expected, rel={torch.float16: 1e-3, torch.float32: 1e-6}.get(dtype, 1e-12))


def test_a_part_of_the_state_that_the_map_leaves_constant_is_not_penalised():
    constant, weight = torch.zeros(2, 3), torch.full((2, 3), 0.5, requires_grad=True)

    def f(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"kept": constant, "moving": weight * state["moving"]}

    z = {"kept": torch.zeros(2, 3), "moving": torch.ones(2, 3)}
    penalty = eq.jacobian_penalty(f, z, probes=400, generator=torch.Generator().manual_seed(0))
    assert penalty.item() == pytest.approx(0.5 * 0.25, rel=0.1)
    (gradient,) = torch.autograd.grad(penalty, weight)
    assert bool((gradient > 0).all())


def test_a_constant_map_is_not_penalised():
    assert eq.jacobian_penalty(torch.zeros_like, torch.ones(2, 3)).item() == 0.0


def test_an_estimate_needs_a_probe():
    f = affine(radius=0.5)
    with pytest.raises(ValueError, match="at least 1"):
        eq.jacobian_penalty(f, f.start, probes=0)


def test_of_no_samples_it_is_zero():
    weight = torch.ones((), requires_grad=True)
    solution = eq.fixed_point(lambda z: 0.5 * weight * z, torch.zeros(0, 3))
    assert float(eq.residual_penalty(solution).detach()) == 0.0
