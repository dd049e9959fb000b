"""Path independence on maps with one fixed point, with two, and with none."""

from __future__ import annotations

import pytest
import torch

import equilibria as eq
from problems import affine, causal_attention, without_fixed_point


@pytest.mark.parametrize("scope", ["sample", "token", "prefix"])
def test_a_contraction_forgets_its_start(scope):
    f = affine(radius=0.5, causal=True)
    found = eq.path_independence(f, f.start, eq.Picard(tol=1e-7, max_evaluations=200, scope=scope))
    assert found.distance.shape == (f.start.shape[:1] if scope == "sample" else f.start.shape[:2])
    assert bool(found.converged.all())
    assert float(found.distance.max()) < 1e-5


def test_two_basins_are_told_from_one():
    gain = torch.tensor([[3.0], [0.5]])  # tanh(3 z) has attractors on both sides of 0, tanh(z / 2) none but 0
    z0 = torch.full((2, 1), 0.1)

    def f(z):
        return torch.tanh(gain * z) + torch.tensor([[0.0], [1.0]])

    found = eq.path_independence(f, z0, eq.Picard(tol=1e-6, max_evaluations=200), starts=8)
    assert bool(found.converged.all())
    assert float(found.distance[0]) == pytest.approx(2.0, rel=1e-3)
    assert float(found.distance[1]) < 1e-4


def test_distance_is_of_the_order_of_the_tolerance():
    f = causal_attention()
    loose, tight = (
        eq.path_independence(f, f.injection, eq.Picard(tol=tol, max_evaluations=300)).distance.max()
        for tol in (1e-2, 1e-6)
    )
    assert tight < 1e-4 < loose < 1.0


def test_what_did_not_converge_is_said():
    found = eq.path_independence(without_fixed_point, torch.zeros(2, 3), eq.Picard(max_evaluations=5))
    assert not bool(found.converged.any())


def test_starts_are_reproducible_and_nested():
    z0 = (torch.zeros(2, 3), {"a": torch.zeros(2, 1)})

    def f(z):
        return torch.tanh(3 * z[0]), {"a": torch.tanh(2 * z[1]["a"])}

    solver = eq.Picard(tol=1e-6, max_evaluations=300)
    first, again, other = (eq.path_independence(f, z0, solver, starts=3, seed=seed).distance for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_one_start_is_too_few():
    with pytest.raises(ValueError, match="starts must be at least 2, found 1"):
        eq.path_independence(without_fixed_point, torch.zeros(1, 1), eq.Picard(), starts=1)
