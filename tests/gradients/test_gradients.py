"""Every gradient against closed forms, unrolling and finite differences in float64."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import equilibria as eq
from equilibria.solvers import Solver
from problems import affine, causal_attention

EXACT = eq.Implicit(eq.GMRES(tol=1e-12, max_evaluations=120, restart=60))
TIGHT = {
    "picard": eq.Picard(tol=1e-11, max_evaluations=1000),
    "anderson": eq.Anderson(tol=1e-11, max_evaluations=400),
    "broyden": eq.Broyden(tol=1e-11, max_evaluations=400),
    "prefix": eq.Anderson(tol=1e-11, max_evaluations=400, scope="prefix"),
}


def tanh_problem():
    generator = torch.Generator().manual_seed(5)
    weight = 0.25 * torch.randn(4, 4, generator=generator, dtype=torch.float64)
    inputs = torch.randn(2, 3, 4, generator=generator, dtype=torch.float64)
    return weight.requires_grad_(), inputs.requires_grad_()


@pytest.mark.parametrize("solver", TIGHT.values(), ids=TIGHT.keys())
def test_implicit_gradient_passes_gradcheck(solver: Solver):
    def solve(weight, inputs):
        start = torch.zeros_like(inputs)
        return eq.fixed_point(lambda z: torch.tanh(z @ weight + inputs), start, solver, EXACT).value

    assert torch.autograd.gradcheck(solve, tanh_problem())


def test_implicit_gradient_equals_the_closed_form():
    f = affine(radius=0.9)
    offset = f.offset.clone().requires_grad_()
    loss_weights = torch.randn(f.offset.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    solution = eq.fixed_point(type(f)(f.matrix, offset), f.start, TIGHT["anderson"], EXACT)
    (solution.value * loss_weights).sum().backward()
    identity = torch.eye(f.matrix.shape[0], dtype=torch.float64)
    expected = torch.linalg.solve((identity - f.matrix).mT, loss_weights.flatten(1).mT).mT
    torch.testing.assert_close(offset.grad, expected.reshape(f.offset.shape))


@pytest.mark.parametrize(
    "gradient",
    [
        EXACT,
        eq.Phantom(steps=200),
        eq.Phantom(steps=300, damping=0.7),
        eq.Phantom(steps=200, checkpoint=True),
    ],
    ids=["implicit", "phantom", "damped", "checkpointed"],
)
def test_equals_unrolling_at_the_solution(gradient):
    grads = []
    for way in (gradient, eq.Unrolled(steps=300)):
        weight, inputs = tanh_problem()
        start = torch.zeros_like(inputs)
        f = lambda z: torch.tanh(z @ weight + inputs)  # noqa: B023,E731
        value = eq.fixed_point(f, start, TIGHT["anderson"], way).value
        value.square().sum().backward()
        grads.append((weight.grad, inputs.grad))
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)


def test_phantom_of_n_steps_is_backpropagation_through_n_evaluations():
    weight, inputs = tanh_problem()
    f = lambda z: torch.tanh(z @ weight + inputs)  # noqa: E731
    solver = eq.Picard(tol=0.0, max_evaluations=4)
    value = eq.fixed_point(f, torch.zeros_like(inputs), solver, eq.Phantom(steps=3), on_failure="ignore").value
    z = torch.zeros_like(inputs)
    with torch.no_grad():
        for _ in range(4):
            z = f(z)
    for _ in range(3):
        z = f(z)
    assert torch.equal(value, z)
    (found,) = torch.autograd.grad(value.sum(), weight, retain_graph=True)
    (expected,) = torch.autograd.grad(z.sum(), weight)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("scale", [1e-8, 1e-3, 1.0, 1e6])
def test_the_scale_of_the_loss_does_not_change_the_implicit_gradient(scale):
    f = affine(radius=0.9)
    offset = f.offset.float().requires_grad_()
    gradient = eq.Implicit(eq.GMRES(tol=1e-4))
    solver = eq.Anderson(tol=1e-5, max_evaluations=200)
    value = eq.fixed_point(type(f)(f.matrix, offset), f.start.float(), solver, gradient).value
    (found,) = torch.autograd.grad(scale * value.square().sum(), offset)
    reference = affine(radius=0.9).offset.clone().requires_grad_()
    exact = eq.fixed_point(type(f)(f.matrix, reference), f.start, TIGHT["anderson"], EXACT).value
    (expected,) = torch.autograd.grad(exact.square().sum(), reference)
    error = torch.linalg.vector_norm(found.double() / scale - expected) / torch.linalg.vector_norm(expected)
    assert float(error) < 1e-2


def test_two_forwards_before_a_backward_and_a_second_backward():
    weight, inputs = tanh_problem()

    def loss(factor: float):
        f = lambda z: torch.tanh(factor * (z @ weight) + inputs)  # noqa: E731
        return eq.fixed_point(f, torch.zeros_like(inputs), TIGHT["anderson"], EXACT).value.square().sum()

    alone = [torch.autograd.grad(loss(factor), weight)[0] for factor in (0.5, 1.0)]
    first, second = loss(0.5), loss(1.0)
    torch.testing.assert_close(torch.autograd.grad(first, weight, retain_graph=True)[0], alone[0])
    torch.testing.assert_close(torch.autograd.grad(second, weight)[0], alone[1])
    torch.testing.assert_close(torch.autograd.grad(first, weight)[0], alone[0])


def test_the_adjoint_reports_how_it_ended():
    f = affine(radius=0.95)
    offset = f.offset.clone().requires_grad_()
    short = eq.Implicit(eq.GMRES(tol=1e-10, max_evaluations=4))
    solution = eq.fixed_point(type(f)(f.matrix, offset), f.start, TIGHT["anderson"], short)
    assert solution.adjoint.status is None
    solution.value.sum().backward()
    assert solution.adjoint.status is eq.Status.MAX_EVALUATIONS
    assert solution.adjoint.evaluations <= 4
    assert solution.adjoint.residual is not None
    assert solution.adjoint.residual.max() > 1e-10


@pytest.mark.parametrize(
    "solver", [eq.Anderson(tol=1e-9, max_evaluations=200), eq.Picard(tol=1e-9, max_evaluations=900)]
)
def test_any_solver_serves_the_adjoint(solver):
    f = affine(radius=0.9)
    grads = []
    for way in (eq.Implicit(solver), EXACT):
        offset = f.offset.clone().requires_grad_()
        eq.fixed_point(type(f)(f.matrix, offset), f.start, TIGHT["anderson"], way).value.square().sum().backward()
        grads.append(offset.grad)
    torch.testing.assert_close(*grads, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("gradient", [EXACT, eq.Phantom(steps=3)])
def test_memory_does_not_grow_with_the_number_of_evaluations(gradient):
    f = causal_attention()
    inputs = f.injection.clone().requires_grad_()

    def run(budget: int):
        solver = eq.Picard(tol=0.0, max_evaluations=budget)
        return eq.fixed_point(type(f)(f.weights, inputs, f.gain), inputs, solver, gradient, on_failure="ignore")

    assert eq.saved_bytes(lambda: run(3)) == eq.saved_bytes(lambda: run(50)) > 0


def test_nested_states_carry_gradients_to_every_leaf():
    generator = torch.Generator().manual_seed(9)
    a = torch.randn(3, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    b = torch.randn(3, 4, generator=generator, dtype=torch.float64, requires_grad=True)

    def solve(a, b):
        def f(z):
            mean = z["b"].mean(-1, keepdim=True)
            return {"a": torch.tanh(0.5 * mean + a), "b": torch.tanh(0.3 * z["a"].sum(-1, keepdim=True) + b)}

        start = {"a": torch.zeros_like(a), "b": torch.zeros_like(b)}
        value = eq.fixed_point(f, start, TIGHT["anderson"], EXACT).value
        return value["a"], value["b"]

    assert torch.autograd.gradcheck(solve, (a, b))


class TestModule:
    """`DEQ`: the joined solver and gradient as a layer."""

    @staticmethod
    def layer() -> eq.DEQ:
        class Cell(nn.Module):
            def __init__(self):
                super().__init__()
                self.linear = nn.Linear(4, 4).double()
                nn.init.orthogonal_(self.linear.weight, gain=0.6)

            def forward(self, z, x):
                return torch.tanh(self.linear(z) + x)

        torch.manual_seed(0)
        return eq.DEQ(Cell(), TIGHT["anderson"], EXACT)

    def test_gradients_reach_parameters_and_inputs(self):
        layer, x = self.layer(), torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
        layer(torch.zeros_like(x), x).value.square().sum().backward()
        assert x.grad is not None
        assert all(parameter.grad is not None for parameter in layer.parameters())

    def test_works_in_eval_mode_with_its_own_solver(self):
        layer = self.layer()
        layer.eval_solver = eq.Picard(tol=1e-3)
        x = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
        trained = layer(torch.zeros_like(x), x)
        evaluated = layer.eval()(torch.zeros_like(x), x)
        assert evaluated.tolerance == 1e-3 != trained.tolerance
        evaluated.value.sum().backward()
        assert x.grad is not None

    def test_copies_and_functional_calls(self):
        layer, x = self.layer(), torch.randn(2, 4, dtype=torch.float64)
        value = layer(torch.zeros_like(x), x).value
        assert torch.equal(copy.deepcopy(layer)(torch.zeros_like(x), x).value, value)
        parameters = {name: tensor.detach() for name, tensor in layer.named_parameters()}
        again = torch.func.functional_call(layer, parameters, (torch.zeros_like(x), x))
        assert torch.equal(again.value, value)
