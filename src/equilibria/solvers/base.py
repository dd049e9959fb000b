"""The one solve loop. A method is a frozen dataclass with `init` and `step`; everything else happens here, per group.

The loop evaluates the map, measures each group's residual, freezes the groups that are within the tolerance (and
releases them when their residual rises again, as a token's does while its predecessors still move), keeps the best
finite iterate of each, and lets the method propose the next one. A returned residual is always measured on the
returned value.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, get_args

import torch
from torch import Tensor

from equilibria.solvers.residual import Groups, norm, relative
from equilibria.solvers.solution import Iterate, Status, no_groups_like, worst
from equilibria.solvers.state import Packing, Scope, State

Map = Callable[[Any], Any]
"""A map from states to states of the same structure; its author knows the structure, the solver need not."""

# A group has stalled when its best residual has not fallen by 2 % in this many evaluations.
_PATIENCE, _IMPROVEMENT = 10, 0.98
# A group has diverged when its iterate is this many times larger than where it began.
_GROWTH = 1e4
# In coupled scopes the last evaluation goes back to a token's best iterate where the latest is this much worse.
_WORSE = 2.0


@dataclass(frozen=True, kw_only=True)
class Solver(ABC):
    """What every method shares.

    Args:
        tol: relative residual at which a group has converged.
        max_evaluations: applications of the map at most.
        scope: what a group is: `"sample"`, `"token"` or `"prefix"`; the last two are causal for causal maps.
    """

    tol: float = 1e-3
    max_evaluations: int = 40
    scope: Scope = "sample"

    def __post_init__(self) -> None:
        if not self.tol >= 0:
            raise ValueError(f"tol must be at least 0, found {self.tol}")
        if self.max_evaluations < 1:
            raise ValueError(f"max_evaluations must be at least 1, found {self.max_evaluations}")
        if self.scope not in get_args(Scope):
            raise ValueError(f"scope must be one of {get_args(Scope)}, found {self.scope!r}")

    @abstractmethod
    def init(self, z: Tensor, groups: Groups) -> Any:
        """The method's memory before the first step, for iterates like `z`, `(*groups, features)`."""

    @abstractmethod
    def step(self, memory: Any, point: Point, groups: Groups) -> tuple[Tensor, Any]:
        """The next iterate, in a tensor of its own, and memory, from the latest measured point."""

    @torch.no_grad()
    def solve(self, f: Map, z0: State, propose: bool = False) -> Iterate:
        """Run the loop on `f` from `z0`, without gradients.

        Args:
            f: the map.
            z0: where to start.
            propose: whether the iterate that would come after the last evaluation is wanted too.
        """
        packing = Packing.of(z0, self.scope)
        progress = _Progress(self, packing.pack(z0))
        memory = self.init(progress.z, progress.groups)
        while True:
            point = progress.measure(packing.pack(f(packing.unpack(progress.z))))
            if progress.done or (progress.spent and not propose):
                break
            proposal, memory = self.step(memory, point, progress.groups)
            progress.advance(proposal)
            if progress.spent:
                break
            progress.move()
        if progress.settle():
            progress.measure(packing.pack(f(packing.unpack(progress.z))))
        return replace(progress.iterate(), memory=memory)


@dataclass(frozen=True)
class Point:
    """A measured iterate, `(*groups, features)`. Methods may keep these tensors but not change them.

    Attributes:
        z: the iterate.
        value: `f(z)`; in groups where that is not finite, `z`.
        difference: `value − z`, the undamped residual vector.
    """

    z: Tensor
    value: Tensor
    difference: Tensor


class _Progress:
    """The state of one solve: the current and best iterate of every group, and the bookkeeping of its status.

    Each evaluation synchronises with the device once, for a handful of flags.
    """

    def __init__(self, solver: Solver, z: Tensor) -> None:
        self.solver, self.groups, self.z = solver, Groups(solver.scope), z
        self.best, self.proposal = z, z
        self.best_residual = torch.full(z.shape[:-1], torch.inf, device=z.device)
        self.residual = self.best_residual
        self.converged = torch.zeros_like(self.residual, dtype=torch.bool)
        self.broken = self.converged
        self.converged_at = no_groups_like(z)
        self.improved_at = no_groups_like(z)
        self.first_norm = norm(z).clamp(min=1.0)
        self.value_norm = self.first_norm
        self.trace: list[float] = []
        self.done = self.some_converged = False
        self.all_finite = True

    def measure(self, f_z: Tensor) -> Point:
        """Record the map's value at the current iterate."""
        count = len(self.trace) + 1
        difference = f_z - self.z
        self.value_norm = norm(f_z)
        self.residual = relative(norm(difference), self.value_norm)
        finite = torch.isfinite(self.residual)
        converged = self.residual <= self.solver.tol
        better = self.residual < self.best_residual
        flags = torch.stack([converged.all(), converged.any(), finite.all(), better.all()])
        self.done, self.some_converged, self.all_finite, all_better = flags.tolist()
        if not self.all_finite:
            self.broken = self.broken | ~finite
            f_z = torch.where(finite.unsqueeze(-1), f_z, self.z)
            difference = torch.where(finite.unsqueeze(-1), difference, 0.0)
        self.converged_at = torch.where(converged & ~self.converged, count, self.converged_at)
        self.converged = converged
        self.improved_at = torch.where(self.residual < _IMPROVEMENT * self.best_residual, count, self.improved_at)
        if all_better:
            self.best, self.best_residual = self.z, self.residual
        else:
            self.best = torch.where(better.unsqueeze(-1), self.z, self.best)
            self.best_residual = torch.minimum(self.residual, self.best_residual)
        self.trace.append(worst(self.residual))
        self.proposal = self.z
        return Point(self.z, f_z, difference)

    @property
    def spent(self) -> bool:
        """Whether the budget of evaluations is used up."""
        return len(self.trace) >= self.solver.max_evaluations

    def advance(self, proposal: Tensor) -> None:
        """Take the method's proposal for the groups that have not converged and where it is finite."""
        usable = torch.isfinite(norm(proposal)) & torch.isfinite(self.residual)
        if not bool(usable.all()):
            proposal = torch.where(usable.unsqueeze(-1), proposal, self.best)
        if self.some_converged:
            proposal = torch.where(self.converged.unsqueeze(-1), self.z, proposal)
        self.proposal = proposal

    def move(self) -> None:
        """Go to the proposal."""
        self.z = self.proposal
        if self.groups.coupled and len(self.trace) == self.solver.max_evaluations - 1:
            # Iterates of coupled groups cannot be mixed after the fact without another evaluation: choose before it.
            astray = ~self.converged & (self.residual > _WORSE * self.best_residual)
            self.z = torch.where(astray.unsqueeze(-1), self.best, self.z)

    def settle(self) -> bool:
        """Choose the returned iterate: the best of each sample; of coupled groups the last, unless it is broken.

        Returns whether the choice has to be measured again.
        """
        if self.groups.coupled:
            if not self.all_finite:
                self.z = torch.where(torch.isfinite(self.residual).unsqueeze(-1), self.z, self.best)
            return not self.all_finite
        better = (self.best_residual < self.residual) & ~self.converged
        self.z = torch.where(better.unsqueeze(-1), self.best, self.z)
        self.residual = torch.where(better, self.best_residual, self.residual)
        return False

    def _status(self) -> Status:
        unconverged = ~self.converged
        if not bool(unconverged.any()):
            return Status.CONVERGED
        if bool((self.broken & unconverged).any()):
            return Status.NON_FINITE
        if bool((unconverged & (self.value_norm > _GROWTH * self.first_norm)).any()):
            return Status.DIVERGED
        if bool((unconverged & (len(self.trace) - self.improved_at >= _PATIENCE)).any()):
            return Status.STALLED
        return Status.MAX_EVALUATIONS

    def iterate(self) -> Iterate:
        """The outcome."""
        evaluations = len(self.trace)
        return Iterate(
            value=self.z,
            proposal=self.proposal,
            residual=self.residual,
            tolerance=self.solver.tol,
            evaluations=evaluations,
            trace=self.trace,
            group_evaluations=torch.where(self.converged, self.converged_at, evaluations),
            status=self._status(),
        )
