"""Every method on every problem of the bank in float64: nothing false is called converged, and gradients are right.

The checks share no code with the solvers: the residual of the whole state, a dense Newton's method, and the implicit
function theorem with a dense Jacobian. Problems whose rows couple are solved in scope `"all"`.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor

import equilibria as eq
from equilibria.gradients import Implicit
from equilibria.solvers import Solution, Solver, Status
from problem_sets import BANK, Problem

TOL = 1e-11
BUDGET = 80
# A value within `TOL` of its own image is `TOL` times the condition of its solution away from it, and so is its
# gradient: the relative error allowed, up to a condition of 10 and beyond it in proportion, and up to where.
GRADIENT, WELL_CONDITIONED = 1e-9, 1e3
# A value of this size counts as zero, by the rounding of where a solve began.
NEAR_ZERO = 1e-15
BY_NAME = {problem.name: problem for problem in BANK}
SOLVERS: dict[str, Solver] = {
    "picard": eq.Picard(tol=TOL, max_evaluations=BUDGET),
    "anderson": eq.Anderson(tol=TOL, max_evaluations=BUDGET),
    "broyden": eq.Broyden(tol=TOL, max_evaluations=BUDGET),
    "newton": eq.NewtonKrylov(tol=TOL, max_evaluations=BUDGET),
}
# Rounding of the residual, which is kept in float32.
SLACK = 1.0 + 1e-5
# How many each solves, less three for the rounding of other processors: some of these paths are chaotic.
SOLVED = {"picard": 29, "anderson": 68, "broyden": 72, "newton": 71}


@cache
def solved(name: str, method: str) -> tuple[Problem, Solution, Tensor]:
    """The problem, its solution, and the parameters that the solution's graph leads to."""
    problem = BY_NAME[name]
    parameters = problem.parameters.clone().requires_grad_()
    solver = replace(SOLVERS[method], scope="all" if problem.coupled else "sample")
    gradient = Implicit(eq.GMRES(tol=1e-13, max_evaluations=150, restart=50))
    solution = eq.fixed_point(problem.at(parameters), problem.start, solver, gradient, on_failure="ignore")
    return problem, solution, parameters


def norm(x: Tensor) -> float:
    return float(torch.linalg.vector_norm(x.detach()))


def norms(z: Tensor, problem: Problem) -> Tensor:
    """Of each group."""
    return torch.linalg.vector_norm(z.reshape(1, -1) if problem.coupled else z, dim=-1)


@pytest.mark.parametrize("method", SOLVERS)
@pytest.mark.parametrize("name", BY_NAME)
def test_what_is_called_converged_is_a_solution_with_its_gradient(name: str, method: str):
    problem, solution, parameters = solved(name, method)
    if solution.status is not Status.CONVERGED:
        assert not bool(solution.converged.all())
        return
    z = solution.value.detach()
    value = problem.map(z, problem.parameters)
    within = norms(value - z, problem) <= SLACK * TOL * (norms(value, problem) + NEAR_ZERO)
    assert bool(within.all())
    if problem.singular:
        return
    root = problem.polished(z)
    assert root is not None
    condition = problem.condition(root)
    farthest = 2 * condition * norm(value - z) + 1e-13 * norm(root)
    assert norm(root - z) <= farthest
    if problem.unique and problem.answer is not None:
        torch.testing.assert_close(root, problem.answer, rtol=1e-10, atol=1e-10)
    if condition <= WELL_CONDITIONED:
        incoming = torch.randn(root.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        wanted, _ = problem.implicit_gradient(root, incoming)
        (found,) = torch.autograd.grad(solution.value, parameters, incoming)
        assert solution.adjoint.status is Status.CONVERGED
        assert norm(found - wanted) <= GRADIENT * max(1.0, condition / 10) * norm(wanted)


@pytest.mark.parametrize("method", SOLVERS)
def test_each_method_solves_what_it_should(method: str):
    missing = [problem.name for problem in BANK if solved(problem.name, method)[1].status is not Status.CONVERGED]
    assert len(BANK) - len(missing) >= SOLVED[method], missing


def test_the_closed_forms_are_solutions():
    known = [problem for problem in BANK if problem.answer is not None]
    assert len(known) > 20
    for problem in known:
        assert problem.answer is not None
        difference = problem.map(problem.answer, problem.parameters) - problem.answer
        assert float(difference.abs().max()) <= 1e-12 * (1 + float(problem.answer.abs().max())), problem.name
