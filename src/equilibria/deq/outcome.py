"""The `Solution` of a solve and of what a gradient made of it."""

from __future__ import annotations

from dataclasses import fields

import torch
from torch import Tensor

from equilibria.gradients import Attached, Solve
from equilibria.solvers import Map, Outcome, Solution, State, Status, mapped
from equilibria.solvers.mapped import plain
from equilibria.solvers.residual import Gauge
from equilibria.solvers.solution import worst
from equilibria.solvers.state import Packing, detach

_FIGURES = [field.name for field in fields(Outcome) if field.name not in ("value", "iterates")]


def solution_of(f: Map, solve: Solve, attached: Attached, iterates: dict[int, State]) -> Solution:
    """What `fixed_point` returns.

    Iterates beyond the convergence of the solve are the solution, with its graph.

    Args:
        f: the map.
        solve: the solve.
        attached: its solution, with a graph.
        iterates: the wanted ones that were reached, with a graph.
    """
    ended = solve.iterate
    if ended is None or attached.steps:
        ended = _measured_again(f, solve, attached)
    figures = {name: getattr(ended, name) for name in _FIGURES}
    solution = Solution(
        value=attached.value, tracked=attached.tracked, adjoint=solve.report, iterates=iterates, **figures
    )
    if (solve.iterate or solution).status is Status.CONVERGED:
        for number in solve.wanted:
            solution.iterates.setdefault(number, solution.value)
    return solution


@torch.no_grad()
def _measured_again(f: Map, solve: Solve, attached: Attached) -> Outcome:
    """The figures of a value that moved on from the solve's, or that nothing was solved for."""
    solver, iterate = solve.solver, solve.iterate
    assert attached.first is not None
    value = detach(attached.value)
    gauge = iterate.gauge if iterate is not None else None
    if gauge is None:
        packing = Packing.of(value, solver.scope)
        gauge = Gauge(packing, solver.criterion, solver.tol)
        began, value_there = (packing.pack(detach(state)) for state in attached.first)
        gauge.begin(began, value_there, look=not mapped.active())
    pack = gauge.packing.pack
    z, f_z = pack(value), pack(f(value) if attached.f_value is None else attached.f_value)
    norms, differences = gauge.norms(f_z), gauge.norms(f_z - z)
    size, difference = gauge.total(norms), gauge.total(differences)
    gauge.note(gauge.total(gauge.norms(torch.sub(*(pack(detach(state)) for state in attached.first)))))
    gauge.note(difference)
    residual = gauge.residual(norms, differences)
    converged = (residual <= solver.tol) & ~gauge.grown(size, difference)
    astray = ~converged & ((residual <= solver.tol) | gauge.astray(size, difference))
    evaluations = (iterate.evaluations if iterate is not None else 0) + attached.steps + 1
    settled = torch.full_like(residual, evaluations, dtype=torch.int32)
    if iterate is not None:
        settled = torch.where(converged & iterate.converged, iterate.group_evaluations, settled)
    return Outcome(
        value=value,
        status=_status(residual, converged, astray, iterate.status if iterate is not None else None),
        residual=residual,
        converged=converged,
        tolerance=solver.tol,
        evaluations=evaluations,
        trace=[*(iterate.trace if iterate is not None else []), worst(residual)],
        group_evaluations=settled,
        group_trace=iterate.group_trace if iterate is not None else None,
    )


def _status(residual: Tensor, converged: Tensor, astray: Tensor, before: Status | None) -> Status:
    """How it ended, where the solve before it ended so."""
    # One synchronisation with the device for all three.
    seen = [plain(torch.isfinite(residual)).all(), plain(astray).any(), plain(converged).all()]
    finite, some_astray, done = torch.stack(seen).tolist()
    if not finite:
        return Status.NON_FINITE
    if done:
        return Status.CONVERGED
    if some_astray:
        return Status.DIVERGED
    return Status.MAX_EVALUATIONS if before in (None, Status.CONVERGED) else before
