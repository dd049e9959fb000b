"""What the cheap gradients are, exactly: partial sums, secants; and where adjoint solves start."""

from __future__ import annotations

import copy

import pytest
import torch

import equilibria as eq
from equilibria.solvers.point import CountedMap, Point
from equilibria.solvers.residual import Groups
from equilibria.solvers.state import Packing, Scope
from problems import Affine, affine
from ways import EXACT, SOLVERS, tanh_map, tanh_problem, tight


@pytest.mark.parametrize("terms", [1, 2, 5])
def test_neumann_is_the_partial_sum(terms: int):
    f = affine(radius=0.9)
    offset = f.offset.clone().requires_grad_()
    solution = eq.fixed_point(
        Affine(f.matrix, offset), f.start, eq.Anderson(tol=1e-8, max_evaluations=400), eq.Neumann(terms)
    )
    g = torch.randn(f.offset.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (found,) = torch.autograd.grad((solution.value * g).sum(), offset)
    expected = sum(g.flatten(1) @ torch.linalg.matrix_power(f.matrix, k) for k in range(terms))
    torch.testing.assert_close(found.flatten(1), expected)
    assert solution.adjoint.evaluations == terms - 1


def test_reused_inverse_of_scalar_equations_is_exact():
    gain = torch.tensor([[0.3], [-0.8], [0.95]], dtype=torch.float64)
    offset = torch.ones(3, 1, dtype=torch.float64, requires_grad=True)
    solver = eq.Broyden(tol=1e-10)
    value = eq.fixed_point(lambda z: gain * z + offset, torch.zeros(3, 1).double(), solver, eq.ReuseInverse()).value
    (found,) = torch.autograd.grad(value.sum(), offset)
    torch.testing.assert_close(found, 1 / (1 - gain))


@pytest.mark.parametrize("scope", ["sample", "token", "prefix"])
def test_reused_inverse_is_the_transposed_of_the_forward_step(scope: Scope):
    f = affine(radius=0.8, causal=True)
    solver, groups = eq.Broyden(scope=scope), Groups(scope)

    def packed(x):
        return x if scope != "sample" else x.flatten(1)

    z = packed(f.start)
    memory = solver.init(z, groups)
    counted = CountedMap(f, Packing.of(f.start, scope), limit=99, check_every=1)

    def measured(z):
        value = packed(f(z.reshape(f.start.shape)))
        return Point(z, value, value - z, None, counted)

    point = measured(z)
    for _ in range(5):
        z, memory = solver.step(memory, point, groups)
        point = measured(z)
    solver.step(memory, point, groups)
    generator = torch.Generator().manual_seed(4)
    r, g = (torch.randn(z.shape, generator=generator, dtype=torch.float64) for _ in range(2))
    # The step from a point is its value minus what the pairs make of the residual: (A − I) r, with nothing new learnt.
    step, _ = solver.step(copy.deepcopy(memory), Point(point.z, point.value, r, None, counted), groups)
    forward = r + step - point.value
    backward = solver.transposed_inverse(memory, g, groups)
    assert not torch.allclose(backward, g)
    torch.testing.assert_close((forward * g).flatten(1).sum(1), (r * backward).flatten(1).sum(1))


def test_reused_inverse_points_nearer_to_the_exact_gradient_than_the_jacobian_free_one():
    f = affine(radius=0.9)
    offset = f.offset.clone().requires_grad_()
    closed, solver = Affine(f.matrix, offset), eq.Broyden(tol=1e-8, max_evaluations=200, history=64)

    def cosine(gradient):
        return eq.gradient_error(closed, f.start, solver, gradient, {"offset": offset})["offset"].cosine

    free, reused = cosine(eq.JacobianFree()), cosine(eq.ReuseInverse())
    refined = cosine(eq.ReuseInverse(eq.GMRES(tol=0.0, max_evaluations=8)))
    assert free < reused < refined


def test_after_a_short_refinement_the_reused_start_is_nearer_than_the_plain_one():
    # One slow direction, which the solve follows and so knows best.
    matrix = torch.diag(torch.tensor([0.95, *[0.1] * 9], dtype=torch.float64))
    offset = torch.ones(1, 1, 10, dtype=torch.float64, requires_grad=True)
    f, short = Affine(matrix, offset), eq.Picard(tol=0.0, max_evaluations=4)

    def error(gradient):
        start = torch.zeros_like(offset)
        return eq.gradient_error(f, start, eq.Broyden(tol=1e-6), gradient, {"offset": offset})["offset"].relative_error

    assert error(eq.ReuseInverse(short)) < 0.1 * error(eq.Implicit(short))


class TestMemory:
    """`Implicit(memory=...)`: the adjoint starts where the one before ended."""

    @staticmethod
    def step(gradient: eq.Implicit, factor: float = 1.0, samples: int = 2):
        weight, inputs = tanh_problem()
        f = tanh_map(weight, inputs[:samples], factor)
        solver = tight(SOLVERS["anderson"], torch.float64)
        solution = eq.fixed_point(f, torch.zeros_like(inputs[:samples]), solver, gradient)
        (found,) = torch.autograd.grad(solution.value.square().sum(), weight)
        return found, solution.adjoint

    def test_the_next_step_costs_less_and_gives_the_same(self):
        gradient = eq.Implicit(eq.GMRES(tol=1e-8), memory=eq.AdjointMemory())
        cold, first = self.step(gradient)
        warm, second = self.step(gradient)
        assert second.evaluations == 1 < first.evaluations
        torch.testing.assert_close(warm, cold, rtol=1e-6, atol=1e-9)
        moved, third = self.step(gradient, factor=1.001)
        assert third.evaluations < first.evaluations
        torch.testing.assert_close(moved, self.step(EXACT, factor=1.001)[0], rtol=1e-6, atol=1e-8)

    def test_another_batch_size_starts_afresh(self):
        gradient = eq.Implicit(eq.GMRES(tol=1e-10), memory=eq.AdjointMemory())
        self.step(gradient)
        found, _ = self.step(gradient, samples=1)
        torch.testing.assert_close(found, self.step(EXACT, samples=1)[0])

    def test_a_failed_adjoint_leaves_no_start_behind(self):
        memory = eq.AdjointMemory()
        gradient = eq.Implicit(eq.GMRES(tol=1e-10), memory=memory)
        weight, inputs = tanh_problem()
        f = tanh_map(weight, inputs)
        value = eq.fixed_point(f, torch.zeros_like(inputs), eq.Anderson(tol=1e-8), gradient).value
        (value * torch.nan).sum().backward()
        torch.testing.assert_close(self.step(gradient)[0], self.step(EXACT)[0])


def test_a_neighbour_that_goes_on_leaves_a_sample_its_pairs():
    torch.manual_seed(1)
    weight = 0.3 * torch.randn(2, 12, 12).double() / 12**0.5
    weight[1] *= 3.2  # one sample takes many more steps than the ring has places

    def gradient_of(*samples: int) -> torch.Tensor:
        offset = torch.ones(2, 12).double().requires_grad_()
        chosen = list(samples)

        def f(z):
            return torch.tanh((z.unsqueeze(1) @ weight[chosen]).squeeze(1) + offset[chosen])

        solver = eq.Broyden(tol=1e-8, max_evaluations=80, history=6)
        solution = eq.fixed_point(f, torch.zeros(len(chosen), 12).double(), solver, eq.ReuseInverse())
        if len(chosen) == 2:
            first, second = solution.group_evaluations.tolist()
            assert second - first > 6
        return torch.autograd.grad(solution.value[0].sin().sum(), offset)[0][0]

    torch.testing.assert_close(gradient_of(0, 1), gradient_of(0), rtol=1e-12, atol=0.0)


def test_pairs_are_read_in_the_units_of_their_solve():
    """A fallback solves again, in units of its own."""

    def gradient_of(fallback: eq.Solver | None) -> torch.Tensor:
        offset = torch.tensor([[1e3, 1.0], [1e3, 1.0]]).double().requires_grad_()
        gain = torch.tensor([0.5, 0.999]).double()

        def f(z):
            both = torch.stack([z["large"], z["small"]], dim=-1)
            large, small = (gain.unsqueeze(-1) * both.flip(-1) * torch.tensor([300.0, 1 / 300.0]) + offset).unbind(-1)
            return {"large": large, "small": small}

        start = {"large": torch.zeros(2).double(), "small": torch.zeros(2).double()}
        solver = eq.Broyden(tol=1e-9, max_evaluations=4, fallback=fallback)
        solution = eq.fixed_point(f, start, solver, eq.ReuseInverse(), on_failure="ignore")
        assert bool(solution.converged[0])
        return torch.autograd.grad(solution.value["large"][0] + solution.value["small"][0], offset)[0][0]

    torch.testing.assert_close(gradient_of(eq.Anderson(tol=1e-9, max_evaluations=60)), gradient_of(None))
