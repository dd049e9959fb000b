"""What did not converge is solved again, by a damped method; the rest stays as it is, bit for bit."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from equilibria.solvers import Anderson, Picard, Status
from equilibria.solvers.state import Scope

DAMPED = Picard(damping=0.3, max_evaluations=200)


def turning(gains: Tensor) -> Callable[[Tensor], Tensor]:
    """`1 − gain · z` per sample: plain iteration swings and grows where the gain is above 1, damped it converges."""
    return lambda z: 1 - gains.reshape(-1, *[1] * (z.dim() - 1)) * z


def test_what_diverges_plainly_is_found_damped() -> None:
    f, z0 = turning(torch.tensor([1.5, 0.5])), torch.zeros(2, 3)
    plain = Picard(tol=1e-4, max_evaluations=60)
    assert plain.solve(f, z0).status is not Status.CONVERGED
    rescued = Picard(tol=1e-4, max_evaluations=60, fallback=DAMPED).solve(f, z0)
    assert rescued.status is Status.CONVERGED
    torch.testing.assert_close(rescued.value, torch.tensor([[0.4] * 3, [2 / 3] * 3]), atol=1e-3, rtol=0)
    assert rescued.evaluations > 60
    assert len(rescued.trace) == rescued.evaluations


def test_a_sample_that_had_converged_does_not_see_its_neighbour() -> None:
    solver = Picard(tol=1e-4, max_evaluations=60, fallback=DAMPED)
    alone = solver.solve(turning(torch.tensor([0.5])), torch.zeros(1, 3))
    beside = solver.solve(turning(torch.tensor([1.5, 0.5])), torch.zeros(2, 3))
    assert torch.equal(beside.value[1:], alone.value)
    assert torch.equal(beside.residual[1:], alone.residual)
    assert torch.equal(beside.group_evaluations[1:], alone.group_evaluations)


@pytest.mark.parametrize("scope", ["token", "prefix"])
def test_a_token_does_not_see_those_after_it(scope: Scope) -> None:
    """Token by token: a later one that diverges and is solved again leaves those before it as they were."""
    mixing = torch.tril(torch.ones(4, 4)) / 8

    def f(z: Tensor, gains: Tensor) -> Tensor:
        return 1 - gains.reshape(1, 4, 1) * z + mixing @ z / 4

    fallback = Picard(damping=0.3, max_evaluations=200, scope=scope)
    solver = Anderson(tol=1e-4, max_evaluations=6, history=2, scope=scope, fallback=fallback)
    easy, hard = torch.tensor([0.5, 0.5, 0.5, 0.5]), torch.tensor([0.5, 0.5, 3.0, 2.0])
    first = solver.solve(lambda z: f(z, easy), torch.zeros(1, 4, 2))
    second = solver.solve(lambda z: f(z, hard), torch.zeros(1, 4, 2))
    assert torch.equal(first.value[:, :2], second.value[:, :2])
    assert not torch.equal(first.value[:, 2:], second.value[:, 2:])


def test_a_solve_that_converges_is_not_repeated() -> None:
    f = turning(torch.tensor([0.5]))
    one, other = (Picard(tol=1e-4, fallback=fallback).solve(f, torch.zeros(1, 3)) for fallback in (None, DAMPED))
    assert one.evaluations == other.evaluations
    assert torch.equal(one.value, other.value)


def test_groups_must_be_the_same() -> None:
    with pytest.raises(ValueError, match="a fallback solves the same groups; found scopes 'prefix', 'sample'"):
        Picard(scope="prefix", fallback=DAMPED)
