"""A start in low precision: what comes out is as exact, as causal and as independent of the batch as without it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

import equilibria as eq
from equilibria.solvers import Solver, Status

SOLVERS: list[Solver] = [
    eq.Picard(tol=1e-5, max_evaluations=80),
    eq.Anderson(tol=1e-5),
    eq.Broyden(tol=1e-5),
    eq.NewtonKrylov(tol=1e-5),
]


class Mixing(torch.nn.Module):
    """A contracting map with a matrix product for autocast to lower; causal along the second dimension."""

    def __init__(self, inputs: Tensor) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inputs, self.linear = inputs, torch.nn.Linear(inputs.shape[-1], inputs.shape[-1])
        torch.nn.init.orthogonal_(self.linear.weight, gain=0.5)
        self.dtypes: list[torch.dtype] = []

    def forward(self, z: Tensor) -> Tensor:
        before = torch.cat([torch.zeros_like(z[:, :1]), z[:, :-1]], dim=1)
        mixed = self.linear(z)
        self.dtypes.append(mixed.dtype)
        return torch.tanh(mixed + 0.3 * before + self.inputs)


def inputs(batch: int = 3) -> Tensor:
    return torch.randn(batch, 10, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda solver: type(solver).__name__)
def test_the_solution_is_that_of_full_precision(solver: Solver):
    f = Mixing(inputs())
    with torch.no_grad():
        exact = replace(solver, tol=1e-7, max_evaluations=200).solve(f, torch.zeros(3, 10, 8)).value
        f.dtypes.clear()
        plain = solver.solve(f, torch.zeros(3, 10, 8))
        f.dtypes.clear()
        drafted = replace(solver, draft=eq.Draft()).solve(f, torch.zeros(3, 10, 8))
    assert drafted.status is Status.CONVERGED
    assert drafted.evaluations == len(f.dtypes) == len(drafted.trace)
    torch.testing.assert_close(drafted.value, exact, atol=1e-4, rtol=1e-4)
    low = f.dtypes.count(torch.bfloat16)
    assert f.dtypes == [torch.bfloat16] * low + [torch.float32] * (len(f.dtypes) - low)
    assert low >= 2
    assert len(f.dtypes) - low < plain.evaluations


@pytest.mark.parametrize("scope", ["token", "prefix"])
@pytest.mark.parametrize("budget", [1, 2, 5])
def test_a_drafted_solve_is_causal(scope, budget):
    one = inputs()
    other = one.clone()
    other[:, 6:] += 1.0
    solver = eq.Anderson(tol=1e-4, max_evaluations=budget, scope=scope, draft=eq.Draft(max_evaluations=budget))
    values = [solver.solve(Mixing(x), torch.zeros_like(x)).value[:, :6] for x in (one, other)]
    assert torch.equal(*values)


def test_a_drafted_solve_does_not_depend_on_the_batch():
    hard = inputs()
    hard[1] *= 0.01  # converges at another rate than its neighbours
    solver = eq.Anderson(tol=1e-4, draft=eq.Draft())
    together = solver.solve(Mixing(hard), torch.zeros_like(hard))
    for sample in range(3):
        alone = solver.solve(Mixing(hard[sample : sample + 1]), torch.zeros(1, 10, 8))
        torch.testing.assert_close(together.value[sample], alone.value[0], atol=1e-6, rtol=1e-5)
        assert int(together.group_evaluations[sample]) == int(alone.group_evaluations[0])


def test_the_gradient_is_that_of_full_precision():
    f = Mixing(inputs())
    found = []
    for draft in (None, eq.Draft()):
        f.zero_grad()
        solution = eq.fixed_point(f, torch.zeros(3, 10, 8), eq.Anderson(tol=1e-6, draft=draft))
        solution.value.square().sum().backward()
        assert f.linear.weight.grad is not None
        found.append(f.linear.weight.grad.clone())
    torch.testing.assert_close(*found, atol=1e-3, rtol=1e-4)


def test_iterates_are_numbered_through():
    f = Mixing(inputs())
    solver = eq.Picard(tol=1e-5, max_evaluations=60, draft=eq.Draft(max_evaluations=2))
    iterate = replace(solver, trace_groups=True).solve(f, torch.zeros(3, 10, 8), iterates=(0, 1, 2, 3))
    assert sorted(iterate.iterates) == [0, 1, 2, 3]
    assert not iterate.iterates[0].any()
    # The third evaluation is the first in full precision.
    torch.testing.assert_close(iterate.iterates[3], f(iterate.iterates[2]))
    assert iterate.group_trace is not None
    assert iterate.group_trace.shape == (iterate.evaluations, 3)


def test_a_tolerance_that_a_draft_meets_costs_little_more():
    f = Mixing(inputs())
    assert eq.Picard(tol=1e-2, draft=eq.Draft()).solve(f, torch.zeros(3, 10, 8)).evaluations <= 2 + (
        eq.Picard(tol=1e-2).solve(f, torch.zeros(3, 10, 8)).evaluations
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [({"dtype": torch.float32}, "dtype"), ({"tol": 0.0}, "tol"), ({"max_evaluations": 0}, "max")],
)
def test_impossible_drafts_are_errors(options, message):
    with pytest.raises(ValueError, match=message):
        eq.Draft(**options)


def test_differences_of_low_precision_are_an_error():
    with pytest.raises(ValueError, match="draft"):
        eq.NewtonKrylov(products="differences", draft=eq.Draft())
