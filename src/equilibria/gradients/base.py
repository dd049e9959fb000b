"""What every way of differentiating a solution has in common: solve, then build a `Solution` that carries a graph."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Protocol

import torch

from equilibria.solvers import AdjointReport, Iterate, Map, Solution, Solver, State, Status, mapped
from equilibria.solvers.mapped import plain
from equilibria.solvers.residual import Gauge
from equilibria.solvers.solution import worst
from equilibria.solvers.state import Packing, detach


class Gradient(Protocol):
    """A way of taking the backward pass; a frozen object without state of its own."""

    def attach(self, f: Map, z0: State, solver: Solver, iterates: Collection[int] = ()) -> Solution:
        """Solve `z = f(z)` from `z0` and return the solution with its graph.

        Args:
            f: the map.
            z0: where to start.
            solver: how to solve.
            iterates: numbers of iterates to return beside the solution, differentiable in the same way; iterate `k`
                is what the solver had after `k` evaluations, the solution from where it converged on. Those that a
                solve without success does not reach are left out.
        """
        ...


Differentiate = Callable[[State, Iterate, AdjointReport], tuple[State, tuple[State, State]]]
"""From a detached state and its solve: the same state with a graph, and the tracked evaluation `(z, f(z))`."""


def solve_and_differentiate(
    f: Map, z0: State, solver: Solver, iterates: Collection[int], differentiate: Differentiate
) -> Solution:
    """Solve without gradients, then give the solution and the wanted iterates a graph at the point where they are."""
    return differentiate_solved(z0, solver, solver.solve(f, z0, iterates=iterates), iterates, differentiate)


def differentiate_solved(
    z0: State, solver: Solver, iterate: Iterate, iterates: Collection[int], differentiate: Differentiate
) -> Solution:
    """Give the solution of a solve and the iterates that it kept a graph at the point where they are.

    The solution has its own graph however early the solve ended: iterates come on top of it, never in its place.
    """
    solution = solution_from(iterate, Packing.of(z0, solver.scope).unpack(iterate.value))
    solution.value, solution.tracked = differentiate(solution.value, iterate, solution.adjoint)
    solution.iterates = {
        number: differentiate(state, iterate, solution.adjoint)[0] for number, state in iterate.iterates.items()
    }
    return with_all_iterates(solution, iterates, iterate.status)


def with_all_iterates(solution: Solution, wanted: Collection[int], status: Status) -> Solution:
    """A solution whose solve may have converged before it came to all `wanted` iterates: those after it are the
    solution itself, with its graph.

    Args:
        solution: with the iterates that the solve came to; changed.
        wanted: the numbers of all.
        status: of the solve.
    """
    if status is Status.CONVERGED:
        for number in wanted:
            solution.iterates.setdefault(number, solution.value)
    return solution


def solution_from(iterate: Iterate, value: State) -> Solution:
    """The `Solution` of a solve whose returned value is numerically the iterate's."""
    return Solution(
        value=value,
        status=iterate.status,
        residual=iterate.residual,
        converged=iterate.converged,
        tolerance=iterate.tolerance,
        evaluations=iterate.evaluations,
        trace=iterate.trace,
        group_evaluations=iterate.group_evaluations,
        group_trace=iterate.group_trace,
    )


def solution_after(
    f: Map, value: State, solver: Solver, iterate: Iterate | None, tracked: int, first: tuple[State, State]
) -> Solution:
    """The `Solution` for a value that moved on from the solve's by `tracked` evaluations: it is measured again.

    Args:
        f: the map.
        value: the result.
        solver: what measures it.
        iterate: the free solve before, None where there was none.
        tracked: evaluations between the iterate and `value`.
        first: of these, `(z, f(z))`.
    """
    with torch.no_grad():
        packing = Packing.of(detach(value), solver.scope)
        gauge = iterate.gauge if iterate is not None else None
        if gauge is None:
            gauge = Gauge(packing, solver.criterion, solver.tol)
            began, value_there = (packing.pack(detach(state)) for state in first)
            gauge.begin(began, value_there, look=not mapped.active())
        z, f_z = gauge.packing.pack(detach(value)), gauge.packing.pack(f(detach(value)))
        norms, differences = gauge.norms(f_z), gauge.norms(f_z - z)
        size, difference = gauge.total(norms), gauge.total(differences)
        gauge.note(gauge.total(gauge.norms(torch.sub(*(gauge.packing.pack(detach(state)) for state in first)))))
        gauge.note(difference)
        residual = gauge.residual(norms, differences)
        converged = (residual <= solver.tol) & ~gauge.grown(size, difference)
        astray = ~converged & ((residual <= solver.tol) | gauge.astray(size, difference))
        # One synchronisation with the device for all three.
        seen = [plain(torch.isfinite(residual)).all(), plain(astray).any(), plain(converged).all()]
        finite, some_astray, done = torch.stack(seen).tolist()
    before = iterate.evaluations if iterate is not None else 0
    evaluations = before + tracked + 1
    if not finite:
        status = Status.NON_FINITE
    elif done:
        status = Status.CONVERGED
    elif some_astray or (iterate is not None and iterate.status is Status.DIVERGED):
        status = Status.DIVERGED
    elif iterate is not None and iterate.status is not Status.CONVERGED:
        status = iterate.status
    else:
        status = Status.MAX_EVALUATIONS
    settled = torch.full_like(residual, evaluations, dtype=torch.int32)
    if iterate is not None:
        settled = torch.where(converged & iterate.converged, iterate.group_evaluations, settled)
    return Solution(
        value=value,
        status=status,
        residual=residual,
        converged=converged,
        tolerance=solver.tol,
        evaluations=evaluations,
        trace=[*(iterate.trace if iterate is not None else []), worst(residual)],
        group_evaluations=settled,
        group_trace=iterate.group_trace if iterate is not None else None,
    )
