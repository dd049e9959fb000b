"""The solve loop for a few tokens, for methods whose steps need nothing but the latest point.

When a text is decoded every evaluation is small, and the bookkeeping of `SolveState` would take much of the time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from equilibria.solvers.point import CountedMap, Map, Point
from equilibria.solvers.progress import IMPROVEMENT, PATIENCE, WORSE
from equilibria.solvers.residual import Gauge, Groups, as_residual, norm
from equilibria.solvers.solution import Iterate, Status
from equilibria.solvers.state import Packing, State

if TYPE_CHECKING:
    from equilibria.solvers.base import Solver

_FEW = 2**14  # numbers of a state, below which bookkeeping takes about as long as a map of one layer


class Recorded:
    """A map that notes its evaluations, and makes none of them twice when it is asked for them again in their order."""

    def __init__(self, f: Map) -> None:
        self._f = f
        self._made: list[Tensor] = []
        self._replayed: Iterator[Tensor] | None = None

    def replay(self) -> None:
        """Begin anew."""
        self._replayed = iter(self._made)

    def __call__(self, z: Tensor) -> Tensor:
        if self._replayed is not None and (value := next(self._replayed, None)) is not None:
            return value
        value = self._f(z)
        if self._replayed is None:
            self._made.append(value)
        return value


def are_few(state: State) -> bool:
    """Whether a state is tokens, `(B, L, features)`, in the solver's own precision, and so few that bookkeeping would
    take a good part of the time; on an accelerator, one token per row: of several, some do not converge more often, and
    then the host has waited for nothing."""
    if not isinstance(state, Tensor) or state.dim() != 3 or not 0 < state.numel() <= _FEW:
        return False
    return state.dtype in (torch.float32, torch.float64) and (state.device.type == "cpu" or state.shape[1] == 1)


def solve_few(solver: Solver, f: Recorded, z0: Tensor) -> Iterate | None:
    """The solve of tokens `(B, L, features)` with the solve loop's arithmetic and little of its bookkeeping.

    None where a value is not finite, grows alone or needs other units, a token is worse at the last evaluation than
    before, or a step applies the map itself, which is to be counted: that is left to the solve loop, which is given the
    same map to go on with.
    """
    tol, max_evaluations, groups = as_residual(solver.tol), solver.max_evaluations, Groups(solver.scope)
    packing = Packing.of(z0, "token")
    gauge = Gauge(packing, solver.criterion, solver.tol)
    apply = CountedMap(f, packing, max_evaluations + 1, 1)
    shape, dtype, alone = z0.shape, z0.dtype, z0.shape[:2] == (1, 1)
    z, memory = z0, solver.init(z0, groups)
    residuals: list[Tensor] = []
    trace: list[float] = []
    while True:
        value = f(z)
        apply.charged += 1
        if not isinstance(value, Tensor) or value.shape != shape or value.dtype != dtype:
            value = packing.pack(value)
        if not trace:
            gauge.begin(z, value)
            if gauge.packing is not packing:
                return None
        difference = value - z
        value_norm, difference_norm = norm(value), norm(difference)
        gauge.note(difference_norm)
        residual = gauge.ratio(value_norm, difference_norm).float()
        least, worst = [float(residual)] * 2 if alone else torch.stack(torch.aminmax(residual)).tolist()
        residuals.append(residual)
        trace.append(worst)
        if not worst < torch.inf:
            return None
        if least <= tol and bool(((residual <= tol) & gauge.grown(value_norm, difference_norm)).any()):
            return None  # a token that the solve loop does not take for converged
        if worst <= tol or len(trace) == max_evaluations + 1:
            break
        if len(trace) == max_evaluations and bool((residual > WORSE * torch.stack(residuals).amin(0)).any()):
            return None
        proposal, memory = solver.step(memory, Point(z, value, difference, None, apply), groups)
        if apply.calls:
            return None
        z = proposal if alone else torch.lerp(z, proposal, (residual > tol).to(z.dtype).unsqueeze(-1))
    if bool(gauge.astray(value_norm, difference_norm).any()):
        return None
    counts, status = torch.full_like(residual, len(trace), dtype=torch.int32), Status.CONVERGED
    if not alone or worst > tol:
        steps = torch.arange(1, len(trace) + 1, dtype=torch.int32, device=z.device).view(-1, 1, 1)
        active_at = ((torch.stack(residuals) > tol) * steps).amax(0)
        counts = torch.minimum(active_at + 1, counts)
        status = status if worst <= tol else _unsolved(residuals, active_at, tol)
    z = z.clone() if z is z0 else z  # the start stays the caller's
    return Iterate(
        value=z,
        proposal=z,
        residual=residual,
        converged=residual <= tol,
        tolerance=solver.tol,
        evaluations=len(trace),
        trace=trace,
        group_evaluations=counts,
        status=status,
        gauge=gauge,
        memory=memory,
    )


def _unsolved(residuals: Sequence[Tensor], active_at: Tensor, tol: float) -> Status:
    """How a finite solve ended in which tokens have not converged, by the rules of `SolveState`; `active_at` is after
    which evaluation each had not for the last time."""
    improved_at, best = torch.zeros_like(active_at), torch.full_like(residuals[0], torch.inf)
    for step, residual in enumerate(residuals, start=1):
        improved_at.masked_fill_(residual < IMPROVEMENT * best, step)
        best = torch.minimum(best, residual)
    before = active_at.cummax(dim=1).values[:, :-1]
    since = torch.cat([improved_at[:, :1], torch.maximum(improved_at[:, 1:], before)], dim=1)
    stalled = (residuals[-1] > tol) & (len(residuals) - since >= PATIENCE)
    return Status.STALLED if bool(stalled.any()) else Status.MAX_EVALUATIONS
