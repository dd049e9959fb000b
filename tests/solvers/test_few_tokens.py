"""The short loop of few tokens is the solve loop's arithmetic, to the last bit."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import product

import pytest
import torch
from torch import Tensor

import equilibria as eq
from equilibria.solvers.few import Recorded, solve_few

_AFTER = torch.ones(8, 1).index_fill(0, torch.tensor(0), 0.0)  # the first has none before it

MAPS = {
    "contracts": lambda z, x, weight: torch.tanh(0.1 * z @ weight + x),
    "hardly contracts": lambda z, x, weight: torch.tanh(0.3 * z @ weight + x),
    "wanders": lambda z, x, weight: torch.tanh(2.0 * z @ weight + x),
    "grows": lambda z, x, weight: 1.7 * z + x,
    "grows by little": lambda z, x, weight: z + 1e3 * x,
    "overflows": lambda z, x, weight: z * 1e30 + x,
    "waits for tokens before": lambda z, x, weight: torch.tanh(z.roll(1, 1) @ weight * _AFTER[: z.shape[1]] + x),
}


METHODS = (
    partial(eq.Picard, scope="prefix"),
    partial(eq.Anderson, history=1, scope="prefix"),
    partial(eq.Anderson, history=1, scope="token"),
    partial(eq.Anderson, history=3, scope="prefix"),
)


@pytest.mark.parametrize(("batch", "length"), [(1, 1), (4, 1), (1, 6), (3, 6)])
@pytest.mark.parametrize("name", MAPS)
def test_the_outcome_is_that_of_the_solve_loop(name, batch, length):
    torch.manual_seed(batch)
    weight, x = torch.randn(16, 16) / 2, torch.randn(batch, length, 16)

    def f(z: Tensor) -> Tensor:
        return MAPS[name](z, x, weight)

    for method, budget, damping, criterion in product(METHODS, (1, 2, 5, 40), (1.0, 0.7), ("relative", "absolute")):
        solver = method(tol=1e-4, max_evaluations=budget, damping=damping, criterion=criterion)
        start = torch.zeros(batch, length, 16)
        one, two = solver.solve(f, start), solver._solve_any(f, start, False, ())
        assert torch.equal(one.value, two.value)
        assert torch.equal(one.residual, two.residual)
        assert torch.equal(one.group_evaluations, two.group_evaluations)
        assert one.group_evaluations.dtype == two.group_evaluations.dtype
        assert (one.status, one.evaluations, one.trace) == (two.status, two.evaluations, two.trace)


def test_what_is_not_finite_is_left_to_the_solve_loop():
    assert solve_few(eq.Picard(max_evaluations=5), Recorded(lambda z: z / 0.0), torch.ones(1, 1, 2)) is None


class TestResult:
    """What a map makes of a single token, in the words of the solve loop."""

    @pytest.mark.parametrize("batch", [1, 2])
    def test_of_another_precision_is_solved_in_the_state_s(self, batch):
        z0 = torch.zeros(batch, 1, 8)

        def f(z: Tensor) -> Tensor:
            return 0.5 * z.bfloat16() + 1

        solver = eq.Picard(tol=1e-2, scope="prefix")
        one, two = solver.solve(f, z0), solver._solve_any(f, z0, False, ())
        assert one.value.dtype == torch.float32
        assert torch.equal(one.value, two.value)
        assert torch.equal(one.residual, two.residual)

    @pytest.mark.parametrize("batch", [1, 2])
    def test_of_another_shape_is_an_error_that_names_both(self, batch):
        with pytest.raises(ValueError, match="must return the shapes it is given"):
            eq.Picard(scope="token").solve(lambda z: z.squeeze(1), torch.zeros(batch, 1, 4))


@pytest.mark.parametrize("name", MAPS)
def test_every_evaluation_is_counted_and_none_is_made_twice(name):
    torch.manual_seed(0)
    weight, x = torch.randn(16, 16) / 2, torch.randn(2, 3, 16)
    calls = 0

    def f(z: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return MAPS[name](z, x, weight)

    for budget in (1, 10, 60):
        for method in METHODS:
            calls = 0
            iterate = method(tol=1e-4, max_evaluations=budget).solve(f, torch.zeros(2, 3, 16))
            assert calls == iterate.evaluations == len(iterate.trace) <= budget + 2


def test_the_solution_is_not_the_start_even_where_that_solves():
    start = torch.ones(2, 1, 4)
    solution = eq.fixed_point(lambda z: z * 1.0, start, eq.Picard(scope="prefix"))
    assert torch.equal(solution.value, start)
    assert solution.value.untyped_storage().data_ptr() != start.untyped_storage().data_ptr()


@dataclass(frozen=True, kw_only=True)
class Doubled(eq.Picard):
    """A method of one's own, whose steps apply the map once more."""

    def step(self, memory, point, groups):
        return (point.map(point.value) if point.map.reserve(1) else point.value), memory


@pytest.mark.parametrize("budget", [2, 3, 20])
def test_evaluations_of_a_method_of_ones_own_are_counted(budget):
    calls = 0

    def f(z: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return 0.5 * z + 1.0

    start, solver = torch.zeros(1, 1, 4), Doubled(tol=1e-3, max_evaluations=budget, scope="token")
    one = solver.solve(f, start)
    assert one.evaluations == calls == len(one.trace)
    two = solver._solve_any(f, start, False, ())
    assert torch.equal(one.value, two.value)
    assert (one.evaluations, one.status, one.trace) == (two.evaluations, two.status, two.trace)
