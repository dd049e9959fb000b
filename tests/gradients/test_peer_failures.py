"""Failures seen in other libraries' gradients, by their number in the list that this library was built against."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

import equilibria as eq
from equilibria.gradients import Gradient
from equilibria.solvers import Solver
from problems import Affine, affine, without_fixed_point
from ways import ALL, CONVERGENT, EXACT, SOLVERS, tanh_map, tanh_problem, tight

SOLVER = tight(SOLVERS["anderson"], torch.float64)
ADJOINTS = [eq.GMRES(tol=1e-4), eq.Anderson(tol=1e-4), eq.Picard(tol=1e-4, max_evaluations=200), eq.Broyden(tol=1e-4)]


@pytest.mark.parametrize("adjoint", ADJOINTS, ids=lambda adjoint: type(adjoint).__name__)
@pytest.mark.parametrize("exponent", [-60, -20, 40])
def test_2_the_scale_of_the_loss_scales_the_gradient_and_nothing_else(adjoint: Solver | eq.GMRES, exponent: int):
    weight, inputs = tanh_problem(torch.float32)
    f = tanh_map(weight, inputs)
    value = eq.fixed_point(f, torch.zeros_like(inputs), eq.Anderson(tol=1e-5), eq.Implicit(adjoint)).value
    (plain,) = torch.autograd.grad(value.square().sum(), weight, retain_graph=True)
    # A power of two rescales floating-point numbers without rounding, so the two must be equal, not only close.
    (scaled,) = torch.autograd.grad(value.square().sum() * 2.0**exponent, weight)
    assert torch.equal(scaled * 2.0**-exponent, plain)


@pytest.mark.parametrize(
    "name", ["implicit", "implicit-higher", "phantom", "neumann", "unrolled", "reused-refined", "implicit-remembering"]
)
def test_6_kept_iterates_leave_the_gradient_of_the_solution_alone(name: str):
    def gradient_with(iterates: list[int]):
        weight, inputs = tanh_problem()
        f = tanh_map(weight, inputs)
        solver = tight(SOLVERS["broyden"], torch.float64)
        solution = eq.fixed_point(f, torch.zeros_like(inputs), solver, CONVERGENT[name], iterates=iterates)
        return torch.autograd.grad(solution.value.square().sum(), weight)[0], solution

    alone, solution = gradient_with([])
    # The solve ends long before iterate 500, which is the solution then, and before it iterate 2 is kept.
    sampled, early = gradient_with([2, 500])
    assert solution.evaluations < 500
    assert list(early.iterates) == [2, 500]
    torch.testing.assert_close(sampled, alone, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("gradient", ALL.values(), ids=ALL.keys())
def test_7_two_forwards_before_a_backward_and_a_second_backward(gradient: Gradient):
    weight, inputs = tanh_problem()
    solver = tight(SOLVERS["broyden"], torch.float64)

    def loss(factor: float):
        f = tanh_map(weight, inputs, factor)
        return eq.fixed_point(f, torch.zeros_like(inputs), solver, gradient).value.square().sum()

    alone = [torch.autograd.grad(loss(factor), weight)[0] for factor in (0.5, 1.0)]
    first, second = loss(0.5), loss(1.0)
    torch.testing.assert_close(torch.autograd.grad(first, weight, retain_graph=True)[0], alone[0])
    torch.testing.assert_close(torch.autograd.grad(second, weight)[0], alone[1])
    torch.testing.assert_close(torch.autograd.grad(first, weight)[0], alone[0])


@pytest.mark.parametrize("gradient", ALL.values(), ids=ALL.keys())
def test_8_a_gradient_does_not_depend_on_the_neighbours_in_the_batch(gradient: Gradient):
    f = affine(radius=0.5, causal=True)
    solver = tight(SOLVERS["broyden"], torch.float64)

    def gradient_of_first(neighbour: float):
        offset = torch.cat([f.offset[:1], neighbour * f.offset[1:]]).requires_grad_()
        value = eq.fixed_point(Affine(f.matrix, offset), f.start, solver, gradient).value
        # The neighbours' losses are large too, so that a tolerance over the batch would be theirs.
        scale = torch.tensor([1.0, neighbour, neighbour], dtype=torch.float64)[:, None, None]
        return torch.autograd.grad((scale * value.square()).sum(), offset)[0][0]

    torch.testing.assert_close(gradient_of_first(1e6), gradient_of_first(1.0), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["implicit", "implicit-anderson", "neumann", "jacobian-free", "reused"])
def test_8_a_neighbour_whose_loss_is_not_a_number_spoils_only_itself(name: str):
    f = affine(radius=0.5, causal=True)
    offset = f.offset.clone().requires_grad_()
    solver = tight(SOLVERS["broyden"], torch.float64)
    value = eq.fixed_point(Affine(f.matrix, offset), f.start, solver, ALL[name]).value
    (expected,) = torch.autograd.grad(value.sum(), offset, retain_graph=True)
    spoilt = torch.ones_like(value)
    spoilt[1] = torch.nan
    (found,) = torch.autograd.grad((spoilt * value).sum(), offset)
    torch.testing.assert_close(found[[0, 2]], expected[[0, 2]])
    assert not bool(torch.isfinite(found[1]).any())


@pytest.mark.parametrize("adjoint", [eq.Anderson(tol=1e-9, max_evaluations=n) for n in (1, 2)])
def test_8_an_adjoint_without_budget_is_reported(adjoint: Solver):
    weight, inputs = tanh_problem()
    f = tanh_map(weight, inputs)
    solution = eq.fixed_point(f, torch.zeros_like(inputs), SOLVER, eq.Implicit(adjoint))
    with pytest.raises(eq.ConvergenceError, match="adjoint"):
        solution.value.sum().backward()
    assert solution.adjoint.status is eq.Status.MAX_EVALUATIONS
    assert solution.adjoint.evaluations <= 3


def test_8_unknown_and_impossible_options_are_errors_that_name_them():
    with pytest.raises(TypeError, match="max_iterations"):
        eq.Implicit(max_iterations=3)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="tolerance"):
        eq.fixed_point(without_fixed_point, torch.zeros(1, 1), tolerance=1e-3)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="terms must be at least 1, found 0"):
        eq.Neumann(terms=0)
    with pytest.raises(ValueError, match="max_evaluations must be at least 2, found 1"):
        eq.GMRES(max_evaluations=1)
    with pytest.raises(TypeError, match=r"Broyden.*found Anderson"):
        eq.fixed_point(torch.cos, torch.zeros(1, 1), eq.Anderson(), eq.ReuseInverse())


@pytest.mark.parametrize("name", [name for name in ALL if not name.startswith("reused")])
def test_8_a_map_without_a_fixed_point_raises_with_every_gradient(name: str):
    with pytest.raises(eq.ConvergenceError, match="worst residual"):
        eq.fixed_point(without_fixed_point, torch.zeros(2, 2), eq.Anderson(tol=1e-6), ALL[name])


class NormalisedCell(nn.Module):
    """A cell whose weight is computed from two parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = weight_norm(nn.Linear(4, 4).double())

    def forward(self, z: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(0.4 * self.linear(z) + x)


def test_9_normalised_weights_follow_a_loaded_state():
    torch.manual_seed(0)
    x = torch.randn(2, 4, dtype=torch.float64)
    old, new = (eq.DEQ(NormalisedCell(), SOLVER, EXACT) for _ in range(2))
    old(torch.zeros_like(x), x).value.sum().backward()
    old.load_state_dict(new.state_dict())
    old.zero_grad()
    values = [layer(torch.zeros_like(x), x).value for layer in (old, new)]
    assert torch.equal(*values)
    for value in values:
        value.sum().backward()
    for a, b in zip(old.parameters(), new.parameters(), strict=True):
        assert a.grad is not None
        assert torch.equal(a.grad, b.grad)  # type: ignore[arg-type]


def test_9_another_dtype_takes_everything_along():
    torch.manual_seed(0)
    layer = eq.DEQ(NormalisedCell(), eq.Anderson(tol=1e-5))
    x = torch.randn(2, 4)
    layer(torch.zeros(2, 4).double(), x.double()).value.sum().backward()
    layer.zero_grad()
    layer.float()
    value = layer(torch.zeros(2, 4), x).value
    value.sum().backward()
    assert value.dtype == torch.float32
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in layer.parameters())
