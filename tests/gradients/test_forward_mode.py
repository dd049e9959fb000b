"""Forward-mode derivatives of a fixed point against unrolling and against the backward pass."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch.autograd import forward_ad

import equilibria as eq
from equilibria.solvers import Solver
from ways import EXACT, SOLVERS, tanh_map, tanh_problem, tight

# torch warns of itself when it first loads its forward-mode decompositions.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")

# Products by forward mode cannot be nested in it.
NESTABLE = {**SOLVERS, "newton": eq.NewtonKrylov(max_evaluations=400, products="differences")}


def problem():
    weight, inputs = (x.detach() for x in tanh_problem())
    generator = torch.Generator().manual_seed(8)
    return (weight, inputs), tuple(torch.randn(x.shape, generator=generator).double() for x in (weight, inputs))


@pytest.mark.parametrize("solver", NESTABLE.values(), ids=NESTABLE.keys())
@pytest.mark.parametrize("outside", [True, False], ids=["start-outside", "start-inside"])
def test_jvp_is_that_of_unrolling(solver: Solver, outside: bool):
    primals, tangents = problem()
    zeros = torch.zeros_like(primals[1])

    def solve(weight, inputs):
        start = zeros if outside else torch.zeros_like(inputs)
        f = tanh_map(weight, inputs)
        return eq.fixed_point(f, start, tight(solver, torch.float64), EXACT).value

    def unroll(weight, inputs):
        z = torch.zeros_like(inputs)
        for _ in range(80):
            z = torch.tanh(z @ weight + inputs)
        return z

    found, expected = (torch.func.jvp(function, primals, tangents) for function in (solve, unroll))
    torch.testing.assert_close(found, expected)
    with forward_ad.dual_level():
        value = solve(*(forward_ad.make_dual(p, t) for p, t in zip(primals, tangents, strict=True)))
        torch.testing.assert_close(forward_ad.unpack_dual(value).tangent, expected[1])


def test_jvp_from_a_start_that_is_the_solution():
    x = torch.ones(2, 3, dtype=torch.float64)
    value, tangent = torch.func.jvp(
        lambda x: eq.fixed_point(lambda z: 0.5 * z + x, torch.full((2, 3), 2.0).double(), eq.Picard()).value,
        (x,),
        (torch.full_like(x, 3.0),),
    )[:2]
    torch.testing.assert_close(value, 2 * x)
    torch.testing.assert_close(tangent, 6 * x)


def test_jvp_and_vjp_agree_on_a_nested_state():
    primals, tangents = problem()

    def solve(weight, inputs):
        def f(z):
            return {"a": torch.tanh(z["b"] @ weight), "b": 0.5 * z["a"].sin() + inputs}

        start = {"a": torch.zeros_like(inputs), "b": torch.zeros_like(inputs)}
        return eq.fixed_point(f, start, tight(SOLVERS["anderson"], torch.float64), EXACT).value["b"].sum()

    forward = torch.func.jvp(solve, primals, tangents)[1]
    weight, inputs = (x.clone().requires_grad_() for x in primals)
    backward = torch.autograd.grad(solve(weight, inputs), (weight, inputs))
    torch.testing.assert_close(forward, sum((g * t).sum() for g, t in zip(backward, tangents, strict=True)))


@pytest.mark.parametrize("reaction", ["raise", "warn", "ignore"])
def test_a_tangent_that_was_not_solved_is_heard(reaction):
    primals, tangents = problem()
    reports = []

    def solve(weight, inputs):
        f = tanh_map(weight, inputs)
        short = eq.Implicit(eq.GMRES(tol=1e-12, max_evaluations=3))
        solution = eq.fixed_point(f, torch.zeros_like(inputs), eq.Anderson(), short, reaction)
        assert len(solution.trace) == solution.evaluations
        reports.append(solution.adjoint)
        return solution.value

    message = "the equation of the tangent was not solved: MAX_EVALUATIONS after .* this tangent is wrong"
    if reaction == "raise":
        with pytest.raises(eq.ConvergenceError, match=message):
            torch.func.jvp(solve, primals, tangents)
        return
    with pytest.warns(eq.ConvergenceWarning, match=message) if reaction == "warn" else nullcontext():
        torch.func.jvp(solve, primals, tangents)
    assert reports[0].status is eq.Status.MAX_EVALUATIONS


@pytest.mark.parametrize("gradient", [eq.JacobianFree(), eq.Phantom(), eq.Implicit(higher_order=True)])
def test_gradients_that_are_defined_by_their_backward_pass_say_so(gradient):
    with pytest.raises(NotImplementedError, match=r"forward-mode.*Implicit\(\)"):
        torch.func.jvp(
            lambda x: eq.fixed_point(lambda z: 0.5 * z + x, torch.zeros_like(x), gradient=gradient).value,
            (torch.ones(1, 1),),
            (torch.ones(1, 1),),
        )
