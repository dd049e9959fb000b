"""Picard iteration, damped on request: `z ← (1 − β) z + β f(z)`."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from equilibria.ranges import share
from equilibria.solvers.base import Solver
from equilibria.solvers.point import Map, Point
from equilibria.solvers.progress import IMPROVEMENT, PATIENCE, WORSE
from equilibria.solvers.residual import Gauge, Groups, norm
from equilibria.solvers.solution import Iterate, Status
from equilibria.solvers.state import Packing, State


@dataclass(frozen=True, kw_only=True)
class Picard(Solver):
    """Plain iteration of the map. Converges where it contracts; nothing is cheaper per evaluation.

    Args:
        damping: the share `β` of the new value, `0 < β ≤ 1`; the residual is always that of the undamped map.
    """

    damping: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        share(damping=self.damping)

    def init(self, z: Tensor, groups: Groups) -> None:
        """Nothing is remembered."""

    def step(self, memory: None, point: Point, groups: Groups) -> tuple[Tensor, None]:
        if self.damping == 1.0:
            return point.value, None
        return torch.lerp(point.z, point.value, self.damping), None

    def _solve(self, f: Map, z0: State, propose: bool, iterates: Collection[int]) -> Iterate:
        """The solve loop, or a shorter one for single tokens where nothing is asked for on the way."""
        asked = propose or iterates or self.trace_groups or self.check_every > 1 or self.scope in ("sample", "all")
        if not asked and is_single(z0):
            f = _Recorded(f)
            found = iterate_single(self, f, z0)
            if found is not None:
                return found
            f.replay()
        return super()._solve(f, z0, propose, iterates)


class _Recorded:
    """A map that repeats its evaluations at no cost, for as long as it is asked for the same ones in the same order."""

    def __init__(self, f: Map) -> None:
        self.f = f
        self.made: list[tuple[Tensor, Tensor]] = []
        self.replayed: Iterator[tuple[Tensor, Tensor]] | None = None

    def replay(self) -> None:
        """Begin anew; nothing more is recorded."""
        self.replayed = iter(self.made)

    def __call__(self, z: Tensor) -> Tensor:
        if self.replayed is None:
            value = self.f(z)
            self.made.append((z, value))
            return value
        there, value = next(self.replayed, (None, None))
        if there is not None and value is not None and torch.equal(there, z):
            return value
        self.replayed = iter(())
        return self.f(z)


def is_single(state: State) -> bool:
    """Whether a state is one token per row, `(B, 1, features)`, in the solver's own precision."""
    if not isinstance(state, Tensor) or state.dim() != 3 or not state.numel():
        return False
    return state.shape[1] == 1 and state.dtype in (torch.float32, torch.float64)


def iterate_single(picard: Picard, f: Map, z0: Tensor) -> Iterate | None:
    """Picard iteration of `(B, 1, features)` with the solve loop's arithmetic and as little bookkeeping as it needs.

    When a text is decoded every evaluation is small, and the bookkeeping of `SolveState` would take much of the time.
    Here groups are rows, none depends on another, and nothing is asked for along the way. None where a value is not
    finite, grows alone or needs other units: that is left to the solve loop.
    """
    tol, max_evaluations, damping = picard.tol, picard.max_evaluations, picard.damping
    packing = Packing.of(z0, "token")
    gauge = Gauge(packing, picard.criterion, tol)
    z = z0
    residuals: list[Tensor] = []
    trace: list[float] = []
    while True:
        value = packing.pack(f(z))
        if not trace:
            gauge.begin(z, value)
            if gauge.packing is not packing:
                return None
        value_norm, difference_norm = norm(value), norm(value - z)
        gauge.note(difference_norm)
        residuals.append(gauge.residual(value_norm, difference_norm))
        trace.append(float(residuals[-1].max()))
        if not trace[-1] < torch.inf:
            return None
        if trace[-1] <= tol or len(trace) == max_evaluations + 1:
            break
        if len(trace) == max_evaluations and bool((residuals[-1] > WORSE * torch.stack(residuals).amin(0)).any()):
            return None
        proposal = value if damping == 1.0 else torch.lerp(z, value, damping)
        if len(z) > 1:
            proposal = torch.lerp(z, proposal, (residuals[-1] > tol).to(z.dtype).unsqueeze(-1))
        z = proposal
    history = torch.stack(residuals)
    within = history[-1] <= tol
    if bool((within & gauge.grown(value_norm, difference_norm) | gauge.astray(value_norm, difference_norm)).any()):
        return None
    steps = torch.arange(1, len(trace) + 1, dtype=torch.int32, device=z.device).view(-1, 1, 1)
    active_at = ((history > tol) * steps).amax(0)
    z = z.clone() if z is z0 else z  # the start stays the caller's
    return Iterate(
        value=z,
        proposal=z,
        residual=residuals[-1],
        converged=within,
        tolerance=tol,
        evaluations=len(trace),
        trace=trace,
        group_evaluations=(active_at + 1).clamp_max(len(trace)),
        status=_status(history, tol),
        gauge=gauge,
    )


def _status(history: Tensor, tol: float) -> Status:
    """How a finite solve ended, by the rules of `SolveState`."""
    active = history[-1] > tol
    if not bool(active.any()):
        return Status.CONVERGED
    improved_at, best = torch.zeros_like(history[0], dtype=torch.int32), torch.full_like(history[0], torch.inf)
    for step, residual in enumerate(history, start=1):
        improved_at.masked_fill_(residual < IMPROVEMENT * best, step)
        best = torch.minimum(best, residual)
    stalled = active & (len(history) - improved_at >= PATIENCE)
    return Status.STALLED if bool(stalled.any()) else Status.MAX_EVALUATIONS
