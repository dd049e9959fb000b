"""Jacobian penalty, spectral radius and gradient error on maps whose answers are known."""

from __future__ import annotations

import pytest
import torch

import equilibria as eq
from problems import affine, causal_attention, rotation


@pytest.mark.parametrize("scale", [0.3, 0.9, 1.4])
def test_spectral_radius_of_a_complex_pair(scale):
    f = rotation(scale)
    assert eq.spectral_radius(f, f.start) == pytest.approx(scale, abs=1e-6)


def test_spectral_radius_of_a_non_normal_map():
    f = affine(radius=0.8, batch=1)
    assert eq.spectral_radius(f, f.start, iterations=24) == pytest.approx(0.8, abs=1e-6)


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


def test_gradient_error_ranks_gradients():
    f = causal_attention(gain=0.5)
    inputs = f.injection.clone().requires_grad_()
    closed = type(f)(f.weights, inputs, f.gain)
    start = torch.zeros_like(inputs.detach())
    solver = eq.Anderson(tol=1e-8, max_evaluations=200, scope="prefix")

    def error(gradient):
        return eq.gradient_error(closed, start, solver, gradient, {"inputs": inputs})["inputs"]

    exact, good, poor = (error(g) for g in (eq.Implicit(), eq.Phantom(steps=8), eq.Phantom(steps=1)))
    assert exact.relative_error < 1e-3
    assert exact.relative_error < good.relative_error < poor.relative_error
    assert exact.cosine > 0.9999
    assert poor.relative_norm < 1.0


@pytest.mark.parametrize(
    "call",
    [
        lambda f: eq.jacobian_penalty(f, f.start, probes=0),
        lambda f: eq.spectral_radius(f, f.start, iterations=0),
    ],
)
def test_impossible_options_are_named(call):
    with pytest.raises(ValueError, match="at least 1"):
        call(affine(radius=0.5))
