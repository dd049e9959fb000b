"""Every gradient against closed forms, unrolling and finite differences in float64."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import equilibria as eq
from equilibria.gradients import Gradient
from equilibria.solvers import Solver
from problems import affine, causal_attention
from ways import ALL, EXACT, tanh_map, tanh_problem

TIGHT = {
    "picard": eq.Picard(tol=1e-11, max_evaluations=1000),
    "anderson": eq.Anderson(tol=1e-11, max_evaluations=400),
    "broyden": eq.Broyden(tol=1e-11, max_evaluations=400),
    "prefix": eq.Anderson(tol=1e-11, max_evaluations=400, scope="prefix"),
}


@pytest.mark.parametrize("solver", TIGHT.values(), ids=TIGHT.keys())
def test_implicit_gradient_passes_gradcheck(solver: Solver):
    def solve(weight, inputs):
        start = torch.zeros_like(inputs)
        return eq.fixed_point(lambda z: torch.tanh(z @ weight + inputs), start, solver, EXACT).value

    assert torch.autograd.gradcheck(solve, tanh_problem())


def test_phantom_of_n_steps_is_backpropagation_through_n_evaluations():
    weight, inputs = tanh_problem()
    f = tanh_map(weight, inputs)
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


def test_the_adjoint_reports_how_it_ended():
    f = affine(radius=0.95)
    offset = f.offset.clone().requires_grad_()
    short = eq.Implicit(eq.GMRES(tol=1e-10, max_evaluations=4))
    solution = eq.fixed_point(type(f)(f.matrix, offset), f.start, TIGHT["anderson"], short)
    assert solution.adjoint.status is None
    with pytest.raises(eq.ConvergenceError, match=r"adjoint equation was not solved.*MAX_EVALUATIONS"):
        solution.value.sum().backward()
    solution = eq.fixed_point(type(f)(f.matrix, offset), f.start, TIGHT["anderson"], short, on_failure="warn")
    with pytest.warns(eq.ConvergenceWarning, match="adjoint equation was not solved"):
        solution.value.sum().backward()
    solution = eq.fixed_point(type(f)(f.matrix, offset), f.start, TIGHT["anderson"], short, on_failure="ignore")
    solution.value.sum().backward()
    assert solution.adjoint.status is eq.Status.MAX_EVALUATIONS
    assert solution.adjoint.evaluations <= 4
    assert solution.adjoint.residual is not None
    assert solution.adjoint.residual.max() > 1e-10


def test_a_failed_adjoint_is_not_forgotten_over_a_later_one():
    weight, inputs = tanh_problem()
    f = tanh_map(weight, inputs)
    solution = eq.fixed_point(f, torch.zeros_like(inputs), TIGHT["anderson"], EXACT)
    torch.autograd.grad((torch.nan * solution.value).sum(), weight, retain_graph=True)
    spent = solution.adjoint.evaluations
    torch.autograd.grad(solution.value.sum(), weight)
    assert solution.adjoint.status is eq.Status.NON_FINITE
    assert solution.adjoint.evaluations > spent


def test_a_loss_that_is_not_a_number_hides_no_failure_of_another_sample():
    f = affine(radius=0.95)
    offset = f.offset.clone().requires_grad_()
    short = eq.Implicit(eq.GMRES(tol=1e-10, max_evaluations=4))
    value = eq.fixed_point(type(f)(f.matrix, offset), f.start, TIGHT["anderson"], short).value
    spoilt = torch.ones_like(value)
    spoilt[1] = torch.nan
    with pytest.raises(eq.ConvergenceError, match="adjoint equation was not solved"):
        (spoilt * value).sum().backward()


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


@pytest.mark.parametrize("gradient", ALL.values(), ids=ALL.keys())
def test_a_frozen_map_costs_a_trainable_head_nothing(gradient: Gradient):
    layer, head = nn.Linear(4, 4).requires_grad_(False), nn.Linear(4, 1)
    nn.init.orthogonal_(layer.weight, gain=0.5)
    solution = eq.fixed_point(lambda z: torch.tanh(layer(z)) + 1, torch.zeros(2, 4), eq.Broyden(), gradient)
    assert not solution.value.requires_grad
    head(solution.value).sum().backward()
    assert head.weight.grad is not None
    assert solution.adjoint.evaluations == 0


@pytest.mark.parametrize("name", ["implicit", "neumann", "reused", "jacobian-free"])
def test_what_a_map_closes_over_is_found_behind_other_layers(name: str):
    x = torch.ones(2, 4, requires_grad=True)
    before = nn.Linear(4, 4).requires_grad_(False)
    injected = torch.tanh(before(x))
    solution = eq.fixed_point(lambda z: 0.5 * z + injected, torch.zeros(2, 4), eq.Broyden(), ALL[name])
    solution.value.sum().backward()
    assert x.grad is not None
    assert bool(x.grad.any())


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
