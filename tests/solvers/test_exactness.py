"""Causality and batch invariance, exactly: any budget and tolerance, every method and option, random maps."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from equilibria.solvers import Anderson, Broyden, NewtonKrylov, Picard, Solver, Status
from problems import CausalMixing, causal_mixing, settling_late

COUPLED: list[Solver] = [
    Picard(),
    Picard(damping=0.7),
    Anderson(),
    Anderson(history=1),
    Anderson(history=5, damping=0.6),
    Broyden(),
    Broyden(history=2),
    Broyden(history=3, halvings=3),
]
EVERY: list[Solver] = [*COUPLED, NewtonKrylov(inner=3), NewtonKrylov(inner=3, products="differences")]


def other_from(offset: Tensor, cut: int, dimension: int, seed: int) -> Tensor:
    """The offset with new, larger numbers from `cut` on."""
    generator = torch.Generator().manual_seed(seed)
    changed = 3.0 * torch.randn(offset.shape, generator=generator, dtype=offset.dtype)
    index = torch.arange(offset.shape[dimension]).reshape([-1 if d == dimension else 1 for d in range(offset.dim())])
    return torch.where(index >= cut, changed, offset)


def two_solves(f: CausalMixing, changed: Tensor, solver: Solver, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    z0 = torch.zeros_like(f.offset, dtype=dtype)
    one, other = (solver.solve(g, z0).value.reshape(z0.shape) for g in (f, CausalMixing(f.matrix, changed)))
    return one, other


@settings(deadline=None, max_examples=150)
@given(
    seed=st.integers(0, 10**6),
    gain=st.sampled_from([0.5, 1.0, 2.0, 6.0]),
    shape=st.tuples(st.integers(1, 3), st.integers(2, 7), st.integers(1, 4)),
    solver=st.sampled_from(COUPLED),
    scope=st.sampled_from(["token", "prefix"]),
    tol=st.sampled_from([0.0, 1e-4, 1e-2, 0.3]),
    budget=st.integers(1, 14),
    check_every=st.sampled_from([1, 3]),
    criterion=st.sampled_from(["relative", "absolute"]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    data=st.data(),
)
def test_no_token_depends_on_a_later_one(
    seed, gain, shape, solver, scope, tol, budget, check_every, criterion, dtype, data
):
    f = causal_mixing(seed, gain, *shape)
    cut = data.draw(st.integers(1, shape[1] - 1))
    solver = replace(solver, scope=scope, tol=tol, max_evaluations=budget, check_every=check_every, criterion=criterion)
    one, other = two_solves(f, other_from(f.offset, cut, 1, seed), solver, dtype)
    assert torch.equal(one[:, :cut], other[:, :cut])


def test_a_token_that_grows_within_the_tolerance_for_a_while_depends_on_no_later_one():
    """Growth alone makes its residual small; whether it counts is seen at every evaluation, and not at the last."""
    f = causal_mixing(6, 6.0, 3, 3, 3)
    for dtype, budget in product((torch.float32, torch.float64), range(1, 15)):
        solver = Picard(scope="token", tol=0.3, max_evaluations=budget)
        one, other = two_solves(f, other_from(f.offset, 1, 1, 6), solver, dtype)
        assert torch.equal(one[:, :1], other[:, :1])


@settings(deadline=None, max_examples=150)
@given(
    seed=st.integers(0, 10**6),
    gain=st.sampled_from([0.5, 1.0, 2.0, 6.0]),
    shape=st.tuples(st.integers(2, 4), st.integers(1, 5), st.integers(1, 4)),
    solver=st.sampled_from(EVERY),
    scope=st.sampled_from(["sample", "token", "prefix"]),
    tol=st.sampled_from([0.0, 1e-4, 1e-2, 0.3]),
    budget=st.integers(1, 14),
    check_every=st.sampled_from([1, 3]),
    criterion=st.sampled_from(["relative", "absolute"]),
    data=st.data(),
)
def test_no_sample_depends_on_another(seed, gain, shape, solver, scope, tol, budget, check_every, criterion, data):
    f = causal_mixing(seed, gain, *shape)
    cut = data.draw(st.integers(1, shape[0] - 1))
    scope = "sample" if isinstance(solver, NewtonKrylov) else scope
    solver = replace(solver, scope=scope, tol=tol, max_evaluations=budget, check_every=check_every, criterion=criterion)
    one, other = two_solves(f, other_from(f.offset, cut, 0, seed), solver, torch.float64)
    assert torch.equal(one[:cut], other[:cut])


@pytest.mark.parametrize("scope", ["token", "prefix"])
@pytest.mark.parametrize("solver", COUPLED, ids=repr)
def test_tokens_that_froze_before_their_predecessors_settled_are_released(solver, scope):
    # All later tokens start at rest: each freezes at once, and must move when the one before it has moved.
    z0 = torch.zeros(2, 6, 3)
    iterate = replace(solver, scope=scope, tol=1e-5, max_evaluations=400, trace_groups=True).solve(settling_late, z0)
    assert iterate.status is Status.CONVERGED
    torch.testing.assert_close(iterate.value, torch.full_like(z0, 2.0), rtol=1e-3, atol=0)
    assert iterate.group_trace is not None
    frozen = iterate.group_trace[:, 0, 5] <= 1e-5
    assert bool(frozen[0])
    assert not bool(frozen.all())


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    shape=st.tuples(st.integers(1, 2), st.integers(1, 6), st.integers(1, 3)),
    solver=st.sampled_from([Picard(), Anderson(), Broyden(), Broyden(halvings=3)]),
    scope=st.sampled_from(["sample", "token", "prefix"]),
    tol=st.sampled_from([1e-3, 1e-6]),
)
def test_what_is_called_converged_is_the_fixed_point_of_a_contraction(seed, shape, solver, scope, tol):
    f = causal_mixing(seed, 1.0, *shape)
    f = replace(f, matrix=0.8 / torch.linalg.matrix_norm(f.matrix, 2) * f.matrix)
    z0 = torch.zeros_like(f.offset)
    answer = Picard(tol=1e-12, max_evaluations=2000).solve(f, z0).value.reshape(z0.shape)
    iterate = replace(solver, scope=scope, tol=tol, max_evaluations=500).solve(f, z0)
    assert iterate.status is Status.CONVERGED
    scale = float(torch.linalg.vector_norm(answer))
    assert float(torch.linalg.vector_norm(iterate.value.reshape(z0.shape) - answer)) <= 10 * tol * scale


def test_newton_krylov_refuses_the_scopes_it_cannot_be_causal_in():
    for scope in ("token", "prefix"):
        with pytest.raises(ValueError, match="sample by sample"):
            NewtonKrylov(scope=scope)
