"""The report on a segment that was solved in chunks says of every token what its own solve said."""

from __future__ import annotations

import pytest
import torch

import equilibria as eq
from equilibria.depths import ChunkedSolution, Equilibrium, Reached, UnrolledDepth
from equilibria.depths.chunks import joined
from equilibria.solvers.state import Scope
from problems import causal_attention, without_fixed_point


def arrived(length: int, budget: int, scope: Scope = "prefix", states_every: int | None = None) -> Reached:
    f = causal_attention(gain=0.5, length=length)
    inputs = f.injection.clone().requires_grad_()
    depth = Equilibrium(
        solver=eq.Picard(tol=1e-3, max_evaluations=budget, scope=scope),
        gradient=eq.Implicit(),
        residual_penalty=2.0,
        states_every=states_every,
    )
    return depth.reach(type(f)(f.weights, inputs, f.gain), torch.zeros_like(f.injection), training=True)


@pytest.mark.parametrize("scope", ["prefix", "sample"])
def test_figures_are_those_of_the_token_s_own_chunk(scope):
    parts = [arrived(5, 3, scope), arrived(2, 40, scope)]
    one, two = (part.solution for part in parts)
    assert one is not None
    assert two is not None
    found = joined(parts)
    solution = found.solution
    assert isinstance(solution, ChunkedSolution)
    assert solution.chunks == (one, two)
    assert torch.equal(found.state, torch.cat([one.value, two.value], 1))
    assert torch.equal(solution.value, found.state)
    for name in ("residual", "group_evaluations", "converged"):
        whole = getattr(solution, name)
        assert whole.shape == (2, 7)
        for figure, tokens in ((getattr(one, name), slice(5)), (getattr(two, name), slice(5, 7))):
            own = figure if figure.dim() == 2 else figure.unsqueeze(1)
            assert torch.equal(
                whole[:, tokens], own.expand(2, -1) if own.shape[1] > 1 else own.expand_as(whole[:, tokens])
            )
    assert (one.status, two.status) == (eq.Status.MAX_EVALUATIONS, eq.Status.CONVERGED)
    assert solution.status is eq.Status.MAX_EVALUATIONS
    assert solution.evaluations == two.evaluations > one.evaluations
    assert len(solution.trace) == len(two.trace)
    assert solution.trace[0] == max(one.trace[0], two.trace[0])
    assert solution.trace[-1] == max(one.trace[-1], two.trace[-1]) == one.trace[-1]
    assert "unconverged" in solution.explain()
    assert solution.tracked is not None
    assert solution.tracked[0].shape == solution.value.shape


def test_penalties_are_means_per_token():
    parts = [arrived(5, 3), arrived(2, 40)]
    penalties = [part.penalty for part in parts]
    assert penalties[0] is not None
    assert penalties[1] is not None
    torch.testing.assert_close(joined(parts).penalty, (5 * penalties[0] + 2 * penalties[1]) / 7)


def test_the_worst_status_is_the_segment_s():
    healthy = Equilibrium(eval_solver=eq.Picard(tol=1e-3, max_evaluations=60))
    with torch.no_grad():
        good = healthy.reach(causal_attention(length=4), torch.zeros(2, 4, 6), training=False)
        runaway = healthy.reach(without_fixed_point, torch.full((2, 3, 6), 1e-4), training=False)
        broken = healthy.reach(lambda z: z * torch.nan, torch.ones(2, 3, 6), training=False)
    for parts, worst in (((good, runaway, good), runaway), ((broken, good, runaway), broken), ((good, good), good)):
        assert worst.solution is not None
        found = joined(parts).solution
        assert found is not None
        assert found.status is worst.solution.status
    assert broken.solution is not None
    assert broken.solution.status is eq.Status.NON_FINITE


def test_a_chunk_with_fewer_states_has_come_to_its_end():
    parts = [arrived(5, 4, states_every=1), arrived(2, 9, states_every=1)]
    short, long = parts
    assert 0 < len(short.states) < len(long.states)
    found = joined(parts)
    assert len(found.states) == len(long.states)
    assert torch.equal(found.states[-1], torch.cat([short.state, long.states[-1]], 1))
    assert torch.equal(found.states[0], torch.cat([short.states[0], long.states[0]], 1))


def test_one_chunk_is_itself_and_explicit_chunks_have_no_solution():
    depth, z0 = UnrolledDepth(2), torch.ones(1, 2, 3)
    reached = depth.reach(torch.neg, z0, training=True)
    assert joined([reached]) is reached
    both = joined([reached, reached])
    assert (both.solution, both.penalty, both.states) == (None, None, ())
    assert both.state.shape == (1, 4, 3)


def test_an_empty_batch_is_joined_like_any_other():
    parts = [Equilibrium().reach(lambda z: 0.5 * z, torch.zeros(0, length, 6), training=False) for length in (3, 2)]
    solution = joined(parts).solution
    assert solution is not None
    assert solution.residual.shape == (0, 5)
