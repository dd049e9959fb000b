"""The bookkeeping of a solve, per group: residuals, freezing, the best iterate, the trace and the status."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from equilibria.solvers.point import CountedMap, Point
from equilibria.solvers.residual import Criterion, Groups, norm, residual_of
from equilibria.solvers.solution import Iterate, Status, no_groups_like
from equilibria.solvers.state import Packing, Scope, State

# A group has stalled when its best residual has not fallen by 2 % in this many steps.
PATIENCE, IMPROVEMENT = 10, 0.98
# A group has gone astray when its iterate is this many times larger than where it began, and not nearer to its value;
# a hundredth less is rounding.
GROWTH, NEARER = 1e4, 0.99
# In coupled scopes the last evaluation goes back to a token's best iterate where the latest is this much worse.
WORSE = 2.0


def gone_astray(value: Tensor, difference: Tensor, first: Tensor, first_difference: Tensor) -> Tensor:
    """Which groups grew without coming nearer to a solution: by `z + 1` a relative residual falls, and there is none.

    Args:
        value, difference: norms of `f(z)` and `f(z) − z`.
        first, first_difference: norms of the first iterate and of what the map added to it.
    """
    return (value > GROWTH * first.clamp(min=1.0)) & (difference >= NEARER * first_difference)


@dataclass(frozen=True)
class Rules:
    """What of a solver's options the bookkeeping needs."""

    tol: float
    criterion: Criterion
    scope: Scope
    iterates: frozenset[int]
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
        self.active = torch.ones_like(self.residual, dtype=torch.bool)
        self.broken = ~self.active
        self.active_at, self.improved_at = no_groups_like(self.z), no_groups_like(self.z)
        self.first_norm = norm(self.z)
        self.value_norm = self.difference_norm = self.first_difference = self.first_norm
        self.difference = torch.empty_like(self.z)
        self.counts: list[int] = []
        self.trace: list[Tensor] = []
        self.iterates: dict[int, State] = {}
        self.done = not self.residual.numel()
        self.some_settled = self.some_broken = True

    def measure(self) -> Point:
        """Apply the map to the current iterate and record what comes of it."""
        f_z = self.apply.measure(self.z)
        self._record()
        steps = len(self.counts)
        difference = torch.sub(f_z, self.z, out=self.difference)
        self.value_norm, self.difference_norm = norm(f_z), norm(difference)
        # What is returned, and so measured, is the iterate in the state's own precision.
        seen = self.packing.rounded(self.z)
        if seen is not self.z:
            self.difference_norm = norm(f_z - seen)
        if steps == 1:
            self.first_difference = self.difference_norm
        self.residual = residual_of(self.difference_norm, self.value_norm, self.rules.criterion)
        self.active = self.residual > self.rules.tol
        # A frozen iterate counts as best, so that a group is never sent back to where it was before it converged.
        worse = (self.residual >= self.best_residual) & self.active
        some_worse = self._look(worse)
        finite = None
        if self.some_broken:
            finite = self.residual < torch.inf
            self.broken = self.broken | ~finite
            # A method's own overflow shows here as well: back to the best iterate.
            here = torch.where(torch.isfinite(norm(self.z)).unsqueeze(-1), self.z, self.best)
            f_z = torch.where(finite.unsqueeze(-1), f_z, here)
            difference.masked_fill_(~finite.unsqueeze(-1), 0.0)
            self.z = here
        self.active_at.masked_fill_(self.active, steps)
        self.improved_at.masked_fill_(self.residual < IMPROVEMENT * self.best_residual, steps)
        if some_worse:
            self.best = torch.where(worse.unsqueeze(-1), self.best, self.z)
            self.best_residual = torch.where(worse, self.best_residual, self.residual)
        else:
            self.best, self.best_residual = self.z, self.residual
        self.trace.append(self.residual if self.rules.trace_groups else self.highest)
        self.proposal = self.z
        return Point(self.z, f_z, difference, finite, self.apply)

    def advance(self, proposal: Tensor) -> None:
        """Take the method's proposal for the groups that have not converged and that the map was finite for."""
        if self.some_broken:
            proposal = torch.where((self.residual < torch.inf).unsqueeze(-1), proposal, self.best)
        if self.some_settled:
            # Exact at weights 0 and 1, and several times faster than a broadcast `where`.
            proposal = torch.lerp(self.z, proposal, self.active.to(self.z.dtype).unsqueeze(-1))
        self.proposal = proposal

    def move(self) -> None:
        """Go to the proposal."""
        self.z = self.proposal
        if self.groups.coupled and self.apply.last:
            # Iterates of coupled groups cannot be mixed after the fact without another evaluation: choose before it.
            worse = self.active & (self.residual > WORSE * self.best_residual)
            self.z = torch.where(worse.unsqueeze(-1), self.best, self.z)

    def settle(self) -> None:
        """Choose the returned iterate: the best of each sample; of coupled groups the last, unless it is broken.

        Coupled groups with a broken one among them are measured once more.
        """
        if not self.groups.coupled:
            better = (self.best_residual < self.residual) & self.active
            self.z = torch.where(better.unsqueeze(-1), self.best, self.z)
            self.residual = torch.where(better, self.best_residual, self.residual)
        elif self.some_broken:
            finite = self.residual < torch.inf
            if not bool(finite.all()):
                self.z = torch.where(finite.unsqueeze(-1), self.z, self.best)
                self.measure()

    def iterate(self) -> Iterate:
        """The outcome."""
        evaluations = self.apply.calls
        trace = torch.stack(self.trace)
        # Evaluations made inside a step leave the residual as it was.
        repeats = torch.tensor([b - a for a, b in pairwise([*self.counts, evaluations + 1])], device=trace.device)
        trace = trace.repeat_interleave(repeats, dim=0, output_size=evaluations)
        worst = trace.flatten(1).amax(dim=1) if trace.dim() > 1 and trace[0].numel() else trace.reshape(evaluations, -1)
        settled_at = torch.tensor([*self.counts, evaluations], dtype=torch.int32, device=trace.device)
        return Iterate(
            value=self.z,
            proposal=self.proposal,
            residual=self.residual,
            tolerance=self.rules.tol,
            evaluations=evaluations,
            trace=worst.flatten().tolist() or [0.0] * evaluations,
            group_evaluations=settled_at[self.active_at],
            status=self._status(astray := self._astray()),
            astray=astray,
            iterates=self.iterates,
            group_trace=trace if self.rules.trace_groups else None,
        )

    def _look(self, worse: Tensor) -> bool:
        """Set the flags; returns whether some group may be among the `worse`."""
        if not self.residual.numel():
            self.highest = self.residual.new_zeros(())
            return False
        lowest, self.highest = torch.aminmax(self.residual)
        if not self.apply.may_look():
            self.some_settled = self.some_broken = True
            return True
        low, high, some_worse = torch.stack([lowest, self.highest, worse.any().to(lowest.dtype)]).tolist()
        self.done, self.some_settled = high <= self.rules.tol, low <= self.rules.tol
        self.some_broken = high == torch.inf
        return bool(some_worse)

    def _record(self) -> None:
        """Note the count of evaluations and the iterate, for those made inside the step before it too."""
        known = self.counts[-1] if self.counts else 0
        self.counts.append(self.apply.calls)
        for number in self.rules.iterates:
            if known <= number < self.apply.calls:
                self.iterates[number] = self.packing.unpack(self.z)

    def _astray(self) -> Tensor:
        return gone_astray(self.value_norm, self.difference_norm, self.first_norm, self.first_difference)

    def _status(self, astray: Tensor) -> Status:
        if not self.residual.numel():
            return Status.CONVERGED
        stalled = self.active & (len(self.counts) - self.improved_at >= PATIENCE)
        flags = [self.active & self.broken, astray, stalled, self.active]
        statuses = Status.NON_FINITE, Status.DIVERGED, Status.STALLED, Status.MAX_EVALUATIONS
        some = torch.stack([flag.any() for flag in flags]).tolist()
        return next((status for status, holds in zip(statuses, some, strict=True) if holds), Status.CONVERGED)
