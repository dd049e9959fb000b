"""The bookkeeping of a solve, per group: residuals, freezing, the best iterate, the trace and the status."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from equilibria.solvers.point import CountedMap, Point
from equilibria.solvers.residual import Criterion, Groups, norm, residual_of
from equilibria.solvers.solution import Iterate, Status, no_groups_like
from equilibria.solvers.state import Packing, Scope, State

# A group has stalled when its best residual has not fallen by 2 % in this many steps.
_PATIENCE, _IMPROVEMENT = 10, 0.98
# A group has diverged when its iterate is this many times larger than where it began.
_GROWTH = 1e4
# In coupled scopes the last evaluation goes back to a token's best iterate where the latest is this much worse.
_WORSE = 2.0


@dataclass(frozen=True)
class Rules:
    """What of a solver's options the bookkeeping needs."""

    tol: float
    criterion: Criterion
    scope: Scope
    keep: tuple[int, ...]
    trace_groups: bool


class Progress:
    """The current and best iterate of every group, and what is known of them.

    It synchronises with the device only when `CountedMap.may_look` allows it; in between it takes the branch that is
    right whatever the flags are.
    """

    def __init__(self, rules: Rules, packing: Packing, z0: State, apply: CountedMap) -> None:
        self.rules, self.packing, self.apply = rules, packing, apply
        self.groups, self.z = Groups(rules.scope), packing.pack(z0)
        self.best, self.proposal = self.z, self.z
        groups = self.z.shape[:-1]
        self.best_residual = torch.full(groups, torch.inf, device=self.z.device)
        self.residual = self.best_residual
        self.converged = torch.zeros_like(self.residual, dtype=torch.bool)
        self.broken = self.converged
        self.converged_at, self.improved_at = no_groups_like(self.z), no_groups_like(self.z)
        self.first_norm = norm(self.z).clamp(min=1.0)
        self.value_norm = self.first_norm
        self.steps = 0
        self.trace: list[Tensor] = []
        self.kept: dict[int, State] = {}
        self.done = False
        self.some_converged = self.some_broken = True

    def measure(self) -> Point:
        """Apply the map to the current iterate and record what comes of it."""
        f_z = self.apply.measure(self.z)
        self.steps += 1
        count = self.apply.calls
        difference = f_z - self.z
        self.value_norm = norm(f_z)
        self.residual = residual_of(norm(difference), self.value_norm, self.rules.criterion)
        finite = torch.isfinite(self.residual)
        converged = self.residual <= self.rules.tol
        # A frozen iterate counts as best, so that a group is never sent back to where it was before it converged.
        better = (self.residual < self.best_residual) | converged
        all_better = False
        if self.apply.may_look():
            flags = torch.stack([converged.all(), converged.any(), finite.all(), better.all()])
            self.done, self.some_converged, all_finite, all_better = flags.tolist()
            self.some_broken = not all_finite
        else:
            self.some_converged = self.some_broken = True
        if self.some_broken:
            self.broken = self.broken | ~finite
            # A method's own overflow shows here as well: back to the best iterate.
            here = torch.where(torch.isfinite(norm(self.z)).unsqueeze(-1), self.z, self.best)
            f_z = torch.where(finite.unsqueeze(-1), f_z, here)
            difference = torch.where(finite.unsqueeze(-1), difference, 0.0)
            self.z = here
        self.converged_at = torch.where(converged & ~self.converged, count, self.converged_at)
        self.converged = converged
        self.improved_at = torch.where(self.residual < _IMPROVEMENT * self.best_residual, self.steps, self.improved_at)
        if all_better:
            self.best, self.best_residual = self.z, self.residual
        else:
            self.best = torch.where(better.unsqueeze(-1), self.z, self.best)
            self.best_residual = torch.where(better, self.residual, self.best_residual)
        self._record(count)
        self.proposal = self.z
        return Point(self.z, f_z, difference, self.apply)

    def advance(self, proposal: Tensor) -> None:
        """Take the method's proposal for the groups that have not converged and that the map was finite for."""
        if self.some_broken:
            proposal = torch.where(torch.isfinite(self.residual).unsqueeze(-1), proposal, self.best)
        if self.some_converged:
            # Exact at weights 0 and 1, and several times faster than a broadcast `where`.
            proposal = torch.lerp(self.z, proposal, (~self.converged).to(self.z.dtype).unsqueeze(-1))
        self.proposal = proposal

    def move(self) -> None:
        """Go to the proposal."""
        self.z = self.proposal
        if self.groups.coupled and self.apply.last:
            # Iterates of coupled groups cannot be mixed after the fact without another evaluation: choose before it.
            astray = ~self.converged & (self.residual > _WORSE * self.best_residual)
            self.z = torch.where(astray.unsqueeze(-1), self.best, self.z)

    def settle(self) -> None:
        """Choose the returned iterate: the best of each sample; of coupled groups the last, unless it is broken.

        Coupled groups with a broken one among them are measured once more.
        """
        if not self.groups.coupled:
            better = (self.best_residual < self.residual) & ~self.converged
            self.z = torch.where(better.unsqueeze(-1), self.best, self.z)
            self.residual = torch.where(better, self.best_residual, self.residual)
        elif self.some_broken:
            finite = torch.isfinite(self.residual)
            if not bool(finite.all()):
                self.z = torch.where(finite.unsqueeze(-1), self.z, self.best)
                self.measure()

    def iterate(self) -> Iterate:
        """The outcome."""
        evaluations = self.apply.calls
        trace = torch.stack(self.trace)
        worst = trace.flatten(1).amax(dim=1) if trace[0].numel() else torch.zeros(evaluations)
        return Iterate(
            value=self.z,
            proposal=self.proposal,
            residual=self.residual,
            tolerance=self.rules.tol,
            evaluations=evaluations,
            trace=worst.tolist(),
            group_evaluations=torch.where(self.converged, self.converged_at, evaluations),
            status=self._status(),
            kept=self.kept,
            group_trace=trace if self.rules.trace_groups else None,
        )

    def _record(self, count: int) -> None:
        """Note the residual and the iterate; evaluations made inside a step count as those of the iterate before."""
        groups = self.residual.numel() and not self.rules.trace_groups
        latest = self.residual.max().unsqueeze(0) if groups else self.residual
        known = len(self.trace)
        before = self.trace[-1] if self.trace else latest
        self.trace.extend([before] * (count - known - 1))
        self.trace.append(latest)
        for number in self.rules.keep:
            if known < number <= count:
                self.kept[number] = self.packing.unpack(self.z)

    def _status(self) -> Status:
        unconverged = ~self.converged
        flags = [
            unconverged,
            self.broken & unconverged,
            unconverged & (self.value_norm > _GROWTH * self.first_norm),
            unconverged & (self.steps - self.improved_at >= _PATIENCE),
        ]
        some, broken, grown, stalled = torch.stack([flag.any() for flag in flags]).tolist()
        if not some:
            return Status.CONVERGED
        if broken:
            return Status.NON_FINITE
        if grown:
            return Status.DIVERGED
        return Status.STALLED if stalled else Status.MAX_EVALUATIONS
