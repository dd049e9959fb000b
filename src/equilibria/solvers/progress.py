"""The bookkeeping of a solve, per group: residuals, freezing, the best iterate, the trace and the status."""

from __future__ import annotations

from collections.abc import Collection
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from equilibria.solvers.point import CountedMap, Point
from equilibria.solvers.residual import Gauge, Groups, as_residual, norm
from equilibria.solvers.solution import Iterate, Status, no_groups_like
from equilibria.solvers.state import Packing, State

if TYPE_CHECKING:
    from equilibria.solvers.base import Solver

# A group has stalled when its best residual has not fallen by 2 % in this many steps.
PATIENCE, IMPROVEMENT = 10, 0.98
# The last evaluation goes back to a group's best iterate where the latest is this much worse.
WORSE = 2.0


class SolveState:
    """The current and best iterate of every group, and what is known of them.

    It synchronises with the device only when `CountedMap.may_look` allows it; in between it takes the branch that is
    right whatever the flags are.
    """

    def __init__(self, solver: Solver, packing: Packing, z0: State, apply: CountedMap, wanted: Collection[int]) -> None:
        self.solver, self.apply, self.wanted = solver, apply, wanted
        self.tol = as_residual(solver.tol)
        self.gauge = Gauge(packing, solver.criterion, solver.tol)
        self.groups = Groups(solver.scope)
        self.z = packing.pack(z0).clone()  # the start stays the caller's, also where it is the solution
        self.best, self.proposal = self.z, self.z
        groups = self.z.shape[:-1]
        self.best_residual = torch.full(groups, torch.inf, device=self.z.device)
        self.residual = self.best_residual
        self.best_at: Tensor | int = 0
        self.active = torch.ones_like(self.residual, dtype=torch.bool)
        self.broken = self.overflowed = ~self.active
        self.active_at, self.improved_at = no_groups_like(self.z), no_groups_like(self.z)
        self.value_norm = self.difference_norm = torch.zeros_like(self.residual)
        self.difference = torch.empty_like(self.z)
        self.counts: list[int] = []
        self.trace: list[Tensor] = []
        self.iterates: dict[int, State] = {}
        self.done = not self.residual.numel()
        self.some_settled = self.some_broken = True

    @property
    def packing(self) -> Packing:
        return self.gauge.packing

    def measure(self) -> Point:
        """Apply the map to the current iterate and record the result."""
        f_z = self.apply.measure(self.z)
        self._record()
        steps = len(self.counts)
        if steps == 1:
            self.z, f_z = self.gauge.begin(self.z, f_z, look=self.apply.watched)
            self.best = self.z
            self.apply.packed_by(self.packing)
        difference = torch.sub(f_z, self.z, out=self.difference)
        before = self.value_norm, self.difference_norm
        self._weigh(f_z, difference)
        # A frozen iterate counts as best, so that a group is never sent back to where it was before it converged.
        worse = (self.residual >= self.best_residual) & self.active
        some_worse = self._look(worse)
        finite = None
        if self.some_broken:
            finite = self.residual < torch.inf
            self.broken = self.broken | ~finite
            self.overflowed = self.overflowed | (~finite & self.gauge.astray(*before))
            # A method's own overflow shows here too: back to the best iterate.
            here = torch.where(torch.isfinite(norm(self.z)).unsqueeze(-1), self.z, self.best)
            f_z = torch.where(finite.unsqueeze(-1), f_z, here)
            difference.masked_fill_(~finite.unsqueeze(-1), 0.0)
            self.z = here
        self.gauge.note(self.difference_norm, finite)
        self.active_at.masked_fill_(self.active, steps)
        self.improved_at.masked_fill_(self.residual < IMPROVEMENT * self.best_residual, steps)
        if some_worse:
            self.best = torch.where(worse.unsqueeze(-1), self.best, self.z)
            self.best_at = torch.where(worse, self.best_at, steps)
            self.best_residual = torch.where(worse, self.best_residual, self.residual)
        else:
            self.best, self.best_at, self.best_residual = self.z, steps, self.residual
        self.trace.append(self.residual if self.solver.trace_groups else self.highest)
        self.proposal = self.z
        return Point(self.z, f_z, difference, finite, self.apply, self._settled() if self.some_settled else None)

    def _settled(self) -> Tensor:
        """Which groups are of samples that are done, `(*groups,)`."""
        active = self.active if self.active.dim() < 2 else self.active.any(dim=1, keepdim=True)
        return ~active.expand_as(self.active)

    def advance(self, proposal: Tensor) -> None:
        """Take the method's proposal for the groups that have not converged and where the map was finite."""
        if self.some_broken:
            proposal = torch.where((self.residual < torch.inf).unsqueeze(-1), proposal, self.best)
        if self.some_settled:
            # Exact at weights 0 and 1, and several times faster than a broadcast `where`.
            proposal = torch.lerp(self.z, proposal, self.active.to(self.z.dtype).unsqueeze(-1))
        self.proposal = proposal

    def move(self) -> None:
        """Go to the proposal."""
        self.z = self.proposal
        if self.apply.last:
            # Iterates of groups that depend on each other cannot be mixed after the fact without another evaluation.
            worse = self.active & (self.residual > WORSE * self.best_residual)
            self.z = torch.where(worse.unsqueeze(-1), self.best, self.z)

    def settle(self) -> None:
        """Choose the returned iterate: the best of each sample; of tokens the last, unless it is broken. The map may
        couple groups, so where they come from different evaluations, they are measured once more."""
        if self.done:
            return
        better = self.active & (self.best_residual < self.residual)
        if self.groups.coupled:
            better = better & ~(self.residual < torch.inf)
        if not bool(better.any()):
            return
        chosen = torch.where(better, self.best_at, len(self.counts))
        self.z = torch.where(better.unsqueeze(-1), self.best, self.z)
        self.residual = torch.where(better, self.best_residual, self.residual)
        if bool((chosen != chosen.flatten()[0]).any()):
            proposal, known = self.proposal, self.residual
            self.measure()
            self.proposal = proposal
            # Where a map breaks that was finite before, the residual of that state is what it was then.
            self.residual = torch.where(better & ~(self.residual < torch.inf), known, self.residual)

    def iterate(self) -> Iterate:
        evaluations = self.apply.calls
        trace = torch.stack(self.trace)
        # Evaluations made inside a step leave the residual as it was.
        repeats = torch.tensor([b - a for a, b in pairwise([*self.counts, evaluations + 1])], device=trace.device)
        trace = trace.repeat_interleave(repeats, dim=0, output_size=evaluations)
        worst = trace.flatten(1).amax(dim=1) if trace.dim() > 1 and trace[0].numel() else trace.reshape(evaluations, -1)
        settled_at = torch.tensor([*self.counts, evaluations], dtype=torch.int32, device=trace.device)
        # A small residual that does not count as converged is due to growth.
        small = self.residual <= self.solver.tol
        astray = small | self.overflowed | self.gauge.astray(self.value_norm, self.difference_norm)
        astray = self.active & astray
        return Iterate(
            value=self.packing.plain(self.z),
            proposal=self.packing.plain(self.proposal),
            residual=self.residual,
            converged=~self.active,
            tolerance=self.solver.tol,
            evaluations=evaluations,
            trace=worst.flatten().tolist() or [0.0] * evaluations,
            group_evaluations=settled_at[self.active_at],
            status=self._status(astray),
            astray=astray,
            iterates=self.iterates,
            group_trace=trace if self.solver.trace_groups else None,
            gauge=self.gauge,
        )

    def _weigh(self, f_z: Tensor, difference: Tensor) -> None:
        """Norms and residuals of the current iterate, and which groups are not done by them."""
        # What is returned, and so measured, is the iterate in the state's own precision.
        seen = self.packing.rounded(self.z)
        difference = difference if seen is self.z else f_z - seen
        self.residual, self.value_norm, self.difference_norm = self.gauge.measure(f_z, difference)
        self.active = self.residual > self.solver.tol

    def _look(self, worse: Tensor) -> bool:
        """Set the flags; returns whether some group may be among the `worse`."""
        if not self.residual.numel():
            self.highest = self.residual.new_zeros(())
            return False
        lowest, self.highest = torch.aminmax(self.residual)
        looking = self.apply.may_look()
        low, high, some_worse = 0.0, torch.inf, 1.0
        if looking:
            low, high, some_worse = torch.stack([lowest, self.highest, worse.any().to(lowest.dtype)]).tolist()
        self.some_settled, self.some_broken = low <= self.tol, high == torch.inf
        if self.some_settled:
            # A residual that is small by growth alone does not end a group.
            self.active = self.active | self.gauge.grown(self.value_norm, self.difference_norm)
        if looking:
            self.done = high <= self.tol and not bool(self.active.any())
            if self.some_broken and len(self.counts) > 1:
                # A map that was not finite twice at its start never will be.
                hopeless = torch.isinf(self.best_residual) & torch.isinf(self.residual)
                self.done = bool((hopeless | ~self.active).all())
        return bool(some_worse)

    def _record(self) -> None:
        """Note the count of evaluations and the iterate, for those made inside the step before it too."""
        known = self.counts[-1] if self.counts else 0
        self.counts.append(self.apply.calls)
        for number in self.wanted:
            if known <= number < self.apply.calls:
                self.iterates[number] = self.packing.unpack(self.z)

    def _status(self, astray: Tensor) -> Status:
        if not self.residual.numel():
            return Status.CONVERGED
        flags = [self.active & self.broken & ~astray, astray, self._stalled(), self.active]
        statuses = Status.NON_FINITE, Status.DIVERGED, Status.STALLED, Status.MAX_EVALUATIONS
        some = torch.stack([flag.any() for flag in flags]).tolist()
        return next((status for status, holds in zip(statuses, some, strict=True) if holds), Status.CONVERGED)

    def _stalled(self) -> Tensor:
        """Groups whose residual no longer falls. A token's patience begins anew when the last one before it settles."""
        since = self.improved_at
        if self.groups.coupled:
            before = self.active_at.cummax(dim=1).values[:, :-1]
            since = torch.cat([since[:, :1], torch.maximum(since[:, 1:], before)], dim=1)
        return self.active & (len(self.counts) - since >= PATIENCE)
