"""Second derivatives through a fixed point: right with `Implicit(higher_order=True)`, an error otherwise."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import equilibria as eq
from equilibria.gradients import Gradient
from ways import ALL, EXACT, SOLVERS, tanh_problem, tight

HIGHER = replace(EXACT, solver=eq.GMRES(tol=1e-13, max_evaluations=120, restart=60), higher_order=True)
SOLVER = tight(SOLVERS["anderson"], torch.float64)


def solve(weight, inputs, gradient: Gradient = HIGHER):
    start = torch.zeros_like(inputs)
    return eq.fixed_point(lambda z: torch.tanh(z @ weight + inputs), start, SOLVER, gradient).value


def test_gradgradcheck():
    weight, inputs = tanh_problem()
    inputs = inputs[:, :1].detach().requires_grad_()
    assert torch.autograd.gradgradcheck(solve, (weight, inputs))


def test_gradgradcheck_of_a_nested_state():
    generator = torch.Generator().manual_seed(9)
    a = torch.randn(2, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    b = torch.randn(2, 3, generator=generator, dtype=torch.float64, requires_grad=True)

    def nested(a, b):
        def f(z):
            return torch.tanh(0.5 * z[1].mean(-1, keepdim=True) * a + a), torch.sin(
                0.3 * z[0].sum(-1, keepdim=True) * b
            )

        return eq.fixed_point(f, (torch.zeros_like(a), torch.zeros_like(b)), SOLVER, HIGHER).value

    assert torch.autograd.gradgradcheck(nested, (a, b))


def test_closed_form_of_a_geometric_series():
    a = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    value = eq.fixed_point(lambda z: a * z + 1, torch.zeros(1, 1, dtype=torch.float64), SOLVER, HIGHER).value
    (first,) = torch.autograd.grad(value.sum(), a, create_graph=True)
    (second,) = torch.autograd.grad(first, a)
    assert first.item() == pytest.approx(4.0)
    assert second.item() == pytest.approx(16.0)


def test_a_gradient_penalty_in_the_loss_is_unrolling_twice():
    def penalised(gradient: Gradient):
        weight, inputs = tanh_problem()
        value = solve(weight, inputs, gradient)
        (slope,) = torch.autograd.grad(value.square().sum(), inputs, create_graph=True)
        # First- and second-order terms meet in the same backward pass.
        return torch.autograd.grad(value.sum() + slope.square().sum(), (weight, inputs))

    for found, expected in zip(penalised(HIGHER), penalised(eq.Unrolled(steps=80)), strict=True):
        torch.testing.assert_close(found, expected)


def test_first_order_costs_one_product_more_and_gives_the_same():
    results = []
    for gradient in (replace(HIGHER, higher_order=False), HIGHER):
        weight, inputs = tanh_problem()
        solution = eq.fixed_point(
            lambda z, w=weight, x=inputs: torch.tanh(z @ w + x), torch.zeros_like(inputs), SOLVER, gradient
        )
        grads = torch.autograd.grad(solution.value.square().sum(), (weight, inputs))
        results.append((*grads, solution.adjoint.evaluations))
    torch.testing.assert_close(results[0][:2], results[1][:2])
    assert results[0][2] == results[1][2]  # the inner solution's adjoint solve is spared


@pytest.mark.parametrize("name", ["implicit", "jacobian-free", "neumann", "implicit-remembering"])
def test_peer_failure_7_second_order_is_right_or_an_error_never_silently_wrong(name: str):
    weight, inputs = tanh_problem()
    (first,) = torch.autograd.grad(solve(weight, inputs, ALL[name]).square().sum(), weight, create_graph=True)
    with pytest.raises(RuntimeError, match="higher_order=True"):
        first.sum().backward()


def test_third_order_is_an_error():
    weight, inputs = tanh_problem()
    (first,) = torch.autograd.grad(solve(weight, inputs).square().sum(), weight, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), weight, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiated again"):
        second.sum().backward()
