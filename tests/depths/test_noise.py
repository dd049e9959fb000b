"""Noise on the iterates of training solves: where it is, that all else is as it was, that reports stay true."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor

import equilibria as eq
from equilibria.depths import DepthSchedule, Equilibrium, GrowingLimits, PathNoise
from equilibria.solvers.residual import relative_residual
from problems import causal_attention

PICARD = eq.Picard(tol=1e-6, max_evaluations=5, scope="prefix")


def moved(z: Tensor, std: float) -> Tensor:
    """What the noise makes of an iterate whose groups are tokens."""
    return z + std * z.square().mean(-1, keepdim=True).sqrt() * torch.randn_like(z)


@pytest.mark.parametrize("gradient", [eq.Phantom(steps=3), eq.JacobianFree(), eq.Switching()])
def test_every_iterate_but_the_last_is_moved_and_what_is_returned_is_measured_by_the_map_itself(gradient):
    # So many features that no iterate of a token is much better than the next, where the solver would go back to it.
    z0, injection = torch.zeros(2, 5, 96), torch.randn(2, 5, 96, generator=torch.Generator().manual_seed(3))

    def f(z: Tensor) -> Tensor:
        return torch.tanh(0.5 * z.roll(1, -1) + injection)

    depth = Equilibrium(PICARD, gradient, noise=PathNoise(0.1))
    torch.manual_seed(4)
    solution = depth.reach(f, z0, training=True).solution
    torch.manual_seed(4)
    expected = z0
    for _ in range(4):
        expected = moved(f(expected), 0.1)
    expected = f(expected)
    steps = {"Phantom": 3, "Switching": 5}.get(type(gradient).__name__, 0)
    for _ in range(steps):
        expected = f(expected)
    assert solution is not None
    torch.testing.assert_close(solution.value, expected)
    torch.testing.assert_close(solution.residual, relative_residual(f(expected), expected), rtol=1e-2, atol=1e-6)
    assert solution.evaluations == 5 + steps + 1
    assert torch.equal(solution.converged, solution.residual <= 1e-6)
    assert solution.tracked is not None
    argument, value = solution.tracked
    torch.testing.assert_close(value, f(argument))


def test_noise_is_new_for_each_iterate_while_a_map_that_draws_keeps_its_numbers():
    seen: list[tuple[Tensor, Tensor, Tensor]] = []

    def f(z: Tensor) -> Tensor:
        mask = torch.rand_like(z)
        seen.append((z.clone(), mask, 0.5 * mask * z + 1))
        return seen[-1][-1]

    depth = Equilibrium(PICARD, eq.JacobianFree(), noise=PathNoise(0.1), residual_penalty=0.0)
    depth.reach(f, torch.zeros(2, 3, 4), training=True)
    assert len(seen) > 5
    assert all(torch.equal(mask, seen[0][1]) for _, mask, _ in seen)
    moves = [after[0] - before[2] for before, after in pairwise(seen[:5])]
    shares = [moves[0] / move for move in moves[1:]]
    assert min(move.abs().min() for move in moves) > 0
    assert all(share.std() > 0.1 for share in shares)


@pytest.mark.parametrize("training", [False, True])
def test_without_noise_nothing_is_drawn_and_nothing_changes(training):
    f = causal_attention(gain=0.5)
    z0 = torch.zeros_like(f.injection)
    plain = Equilibrium(PICARD, eq.Phantom(steps=2), PICARD)
    before = torch.get_rng_state()
    silent = replace(plain, noise=PathNoise(0.0 if training else 0.5)).reach(f, z0, training)
    assert torch.equal(torch.get_rng_state(), before)
    usual = plain.reach(f, z0, training)
    assert silent.solution is not None
    assert usual.solution is not None
    assert torch.equal(silent.state, usual.state)
    assert silent.solution.trace == usual.solution.trace


def test_noise_above_the_tolerance_keeps_solves_going_and_is_no_failure():
    f = causal_attention(gain=0.5)
    z0, solver = torch.zeros_like(f.injection), eq.Picard(tol=1e-4, max_evaluations=40, scope="prefix")
    quiet = Equilibrium(solver, eq.Guarded()).reach(f, z0, training=True).solution
    noisy = Equilibrium(solver, eq.Guarded(), noise=PathNoise(0.05)).reach(f, z0, training=True).solution
    assert quiet is not None
    assert noisy is not None
    assert quiet.status is eq.Status.CONVERGED
    assert (noisy.status, noisy.evaluations) == (eq.Status.MAX_EVALUATIONS, 41)
    assert not noisy.converged.any()
    assert min(noisy.trace) > 1e-3  # it would have stalled there
    slight = replace(solver, tol=1e-2)
    found = Equilibrium(slight, eq.Guarded(), noise=PathNoise(1e-3)).reach(f, z0, training=True).solution
    assert found is not None
    assert found.status is eq.Status.CONVERGED
    assert (relative_residual(f(found.value), found.value) <= 1.001e-2).all()


@pytest.mark.parametrize(
    "solver",
    [
        eq.Anderson(tol=1e-9, max_evaluations=6, scope="prefix"),
        eq.Broyden(tol=1e-9, max_evaluations=6),
        eq.NewtonKrylov(tol=1e-9, max_evaluations=20, inner=4, products="differences"),
        replace(PICARD, draft=eq.Draft(tol=1e-30, max_evaluations=3)),
        replace(PICARD, tol=1e-3, fallback=eq.Picard(max_evaluations=60, scope="prefix")),
    ],
)
def test_every_solver_takes_it_within_its_budget(solver):
    f = causal_attention(gain=0.5)
    z0 = torch.zeros_like(f.injection, dtype=torch.float32)
    depth = Equilibrium(solver, eq.JacobianFree(), noise=PathNoise(0.02))
    torch.manual_seed(1)
    one, another = (depth.reach(f, z0, training=True).solution for _ in range(2))
    assert one is not None
    assert another is not None
    assert not torch.equal(one.value, another.value)
    assert solver.fallback is None or one.status is eq.Status.CONVERGED
    assert torch.isfinite(one.residual).all()
    assert one.evaluations <= solver.most_evaluations + 2


def test_noise_is_relative_so_that_the_size_of_states_does_not_matter():
    def solved(size: float) -> Tensor:
        torch.manual_seed(2)
        depth = Equilibrium(PICARD, eq.JacobianFree(), noise=PathNoise(0.1))
        return depth.reach(lambda z: 0.5 * z + size, torch.zeros(2, 3, 4), training=True).state / size

    for size in (2.0**-60, 2.0**60):
        torch.testing.assert_close(solved(size), solved(1.0))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"gradient": eq.Unrolled()}, "Unrolled, which differentiates every evaluation"),
        ({"gradient": eq.Reversible()}, "Reversible, which differentiates every evaluation"),
        ({"gradient": eq.ReuseInverse(), "solver": eq.Broyden()}, "pairs of a solve without noise"),
        ({"solver": eq.Picard(max_evaluations=1)}, "noise has no effect on a solve of one evaluation"),
    ],
)
def test_noise_without_an_effect_or_a_meaning_is_refused(options, said):
    with pytest.raises(ValueError, match=said):
        Equilibrium(**options, noise=PathNoise())
    with pytest.raises(ValueError, match="std must be at least 0"):
        PathNoise(-1.0)


def test_noise_is_for_a_short_solve_that_a_schedule_makes_longer():
    growing = DepthSchedule(limits=GrowingLimits(1, 4))
    depth = Equilibrium(solver=eq.Picard(max_evaluations=1), noise=PathNoise(), schedule=growing)
    assert depth.noise is not None
