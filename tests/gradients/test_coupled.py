"""Maps that mix the rows of a batch: values, residuals and gradients are those of plain backpropagation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import equilibria as eq

BATCH, FEATURES = 8, 4
KINDS = ["batch norm", "graph", "attention over the batch", "permutation", "contrast"]
SOLVER = {"tol": 1e-12, "max_evaluations": 500}


@dataclass
class Coupled:
    """A map, and what its gradient is taken with respect to."""

    f: Callable[[Tensor], Tensor]
    weight: Tensor
    inputs: Tensor

    def by_backpropagation(self, loss: Callable[[Tensor], Tensor]) -> tuple[Tensor, ...]:
        z = torch.zeros(BATCH, FEATURES, dtype=torch.float64)
        for _ in range(400):
            z = self.f(z)
        return (z.detach(), *torch.autograd.grad(loss(z), (self.weight, self.inputs)))


def coupled(kind: str, seed: int, gain: float = 0.5) -> Coupled:
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    weight = (gain * torch.linalg.qr(random(FEATURES, FEATURES))[0]).requires_grad_()
    inputs = random(BATCH, FEATURES).requires_grad_()
    norm = nn.BatchNorm1d(FEATURES).double()
    graph = torch.rand(BATCH, BATCH, generator=generator, dtype=torch.float64).softmax(-1)
    order = torch.randperm(BATCH, generator=generator)

    def f(z: Tensor) -> Tensor:
        match kind:
            case "batch norm":
                return torch.tanh(0.3 * norm(z @ weight) + inputs)
            case "graph":
                return torch.tanh(graph @ z @ weight + inputs)
            case "attention over the batch":
                return torch.tanh((z @ z.mT / 4).softmax(-1) @ z @ weight + inputs)
            case "permutation":
                return torch.tanh(z[order] @ weight + inputs)
            case _:  # what is common to the batch is taken away
                return torch.tanh((z - z.mean(0)) @ weight + inputs)

    return Coupled(f, weight, inputs)


def loss(z: Tensor) -> Tensor:
    """Of two rows alone: the gradient of the others is all coupling."""
    return z[:2].square().sum()


ADJOINTS = {
    "gmres": eq.GMRES(tol=1e-12, max_evaluations=400),
    "gmres, all": eq.GMRES(tol=1e-12, max_evaluations=400, scope="all"),
    "anderson": eq.Anderson(**SOLVER, scope="all"),
    "picard": eq.Picard(**SOLVER),
}


@pytest.mark.parametrize("adjoint", ADJOINTS.values(), ids=ADJOINTS.keys())
@pytest.mark.parametrize("scope", ["sample", "all"])
@pytest.mark.parametrize("kind", KINDS)
def test_implicit_gradients_are_those_of_backpropagation(kind, scope, adjoint):
    problem = coupled(kind, seed=1)
    value, *expected = problem.by_backpropagation(loss)
    z0 = torch.zeros_like(value)
    solution = eq.fixed_point(problem.f, z0, eq.Anderson(**SOLVER, scope=scope), eq.Implicit(adjoint))
    torch.testing.assert_close(solution.value.detach(), value, rtol=1e-9, atol=1e-10)
    found = torch.autograd.grad(loss(solution.value), (problem.weight, problem.inputs))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(kind=st.sampled_from(KINDS), seed=st.integers(0, 10_000), gain=st.floats(0.1, 0.8))
def test_defaults_are_right_to_their_tolerance_or_heard(kind, seed, gain):
    problem = coupled(kind, seed, gain)
    value, *expected = problem.by_backpropagation(loss)
    with torch.no_grad():
        assume(float((problem.f(value) - value).norm()) < 1e-10)  # or plain iteration is no oracle
    solver = eq.Anderson(tol=1e-10, max_evaluations=500)
    z0 = torch.zeros(BATCH, FEATURES, dtype=torch.float64)
    try:
        solution = eq.fixed_point(problem.f, z0, solver)
        found = torch.autograd.grad(loss(solution.value), (problem.weight, problem.inputs))
    except eq.ConvergenceError:
        return
    # An adjoint to 1e-5 of a map of this gain.
    for a, b in zip(found, expected, strict=True):
        assert float((a - b).norm()) <= 1e-3 * float(b.norm())


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_error_has_the_right_reference(kind):
    problem = coupled(kind, seed=2)
    solver = eq.Anderson(tol=1e-9, max_evaluations=200)
    parameters = {"weight": problem.weight, "inputs": problem.inputs}
    z0 = torch.zeros(BATCH, FEATURES, dtype=torch.float64)
    exact = eq.Implicit(eq.GMRES(tol=1e-10, max_evaluations=400))
    found = eq.gradient_error(problem.f, z0, solver, exact, parameters)
    unrolled = eq.gradient_error(problem.f, z0, solver, eq.Unrolled(300), parameters)
    for name in parameters:
        assert found[name].relative_error < 1e-4
        assert unrolled[name].relative_error < 1e-4


@pytest.mark.parametrize("budget", [3, 6])
@pytest.mark.parametrize("solver", [eq.Picard(), eq.Anderson(), eq.Broyden()], ids=lambda solver: type(solver).__name__)
@pytest.mark.parametrize("kind", KINDS)
def test_the_residual_is_true_of_what_was_put_together(kind, solver, budget):
    """A gain beyond contraction, so that the best iterates of the rows come from different evaluations."""
    problem = coupled(kind, seed=3, gain=2.5)
    with torch.no_grad():
        solution = eq.fixed_point(
            problem.f,
            torch.zeros(BATCH, FEATURES, dtype=torch.float64),
            solver,
            on_failure="ignore",
            max_evaluations=budget,
        )
        f_z = problem.f(solution.value)
    expected = (f_z - solution.value).norm(dim=-1) / f_z.norm(dim=-1)
    torch.testing.assert_close(solution.residual.double(), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
def test_forward_mode_agrees_with_differences():
    problem = coupled("graph", seed=4)
    weight, inputs = problem.weight.detach(), problem.inputs.detach()
    z0, direction = torch.zeros_like(inputs), torch.zeros_like(inputs)
    direction[0] = 1.0
    gradient = eq.Implicit(eq.GMRES(tol=1e-12, max_evaluations=400))

    def solve(inputs: Tensor) -> Tensor:
        def f(z: Tensor) -> Tensor:
            return torch.tanh(torch.roll(z, 1, 0) @ weight + inputs)

        return eq.fixed_point(f, z0, eq.Anderson(**SOLVER, scope="all"), gradient).value

    tangent = torch.func.jvp(solve, (inputs,), (direction,))[1]
    step = 1e-6
    differences = (solve(inputs + step * direction) - solve(inputs - step * direction)) / (2 * step)
    torch.testing.assert_close(tangent, differences, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_the_audit_finds_it(kind):
    problem = coupled(kind, seed=5)
    z = torch.randn(BATCH, FEATURES, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = eq.audit_coupling(problem.f, z)
    assert found
    # A permutation may leave a row where it is.
    assert int(found.coupled.sum()) >= (2 if kind == "permutation" else BATCH)
    assert found.strength > 0
    apart = eq.audit_coupling(lambda z: torch.tanh(z @ problem.weight + problem.inputs), z)
    assert not apart
    assert apart.strength == 0.0
