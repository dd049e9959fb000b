"""Picard iteration, damped on request: `z ← (1 − β) z + β f(z)`."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from equilibria.ranges import share
from equilibria.solvers.base import Solver
from equilibria.solvers.point import Map, Point
from equilibria.solvers.progress import IMPROVEMENT, PATIENCE, WORSE
from equilibria.solvers.residual import Gauge, Groups, as_residual, norm
from equilibria.solvers.solution import Iterate, Status
from equilibria.solvers.state import Packing, State

_FEW = 2**14  # numbers of a state, below which bookkeeping takes about as long as a map of one layer


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
        """The solve loop, or a shorter one for a few tokens where nothing is asked for on the way."""
        asked = propose or iterates or self.trace_groups or self.check_every > 1 or self.scope in ("sample", "all")
        if asked or not are_few(z0):
            return super()._solve(f, z0, propose, iterates)
        made = Recorded(f)
        found = iterate_few(self, made, z0)
        if found is not None:
            return found
        made.replay()
        return super()._solve(made, z0, propose, iterates)


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


def iterate_few(picard: Picard, f: Recorded, z0: Tensor) -> Iterate | None:
    """Picard iteration of tokens `(B, L, features)` with the solve loop's arithmetic and little of its bookkeeping.

    When a text is decoded every evaluation is small, and the bookkeeping of `SolveState` would take much of the time.
    None where a value is not finite, grows alone or needs other units, or a token is worse at the last evaluation than
    before: that is left to the solve loop, which is given the same map to go on with.
    """
    tol, max_evaluations, damping = as_residual(picard.tol), picard.max_evaluations, picard.damping
    packing = Packing.of(z0, "token")
    gauge = Gauge(packing, picard.criterion, picard.tol)
    shape, dtype, alone = z0.shape, z0.dtype, z0.shape[:2] == (1, 1)
    z = z0
    residuals: list[Tensor] = []
    trace: list[float] = []
    while True:
        value = f(z)
        if not isinstance(value, Tensor) or value.shape != shape or value.dtype != dtype:
            value = packing.pack(value)
        if not trace:
            gauge.begin(z, value)
            if gauge.packing is not packing:
                return None
        value_norm, difference_norm = norm(value), norm(value - z)
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
        proposal = value if damping == 1.0 else torch.lerp(z, value, damping)
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
        tolerance=picard.tol,
        evaluations=len(trace),
        trace=trace,
        group_evaluations=counts,
        status=status,
        gauge=gauge,
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
