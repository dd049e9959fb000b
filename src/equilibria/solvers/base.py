"""The one solve loop. A method is a frozen dataclass with `init` and `step`; everything else happens here, per group.

The loop evaluates the map, measures each group's residual, freezes the groups that are within the tolerance (and
releases them when their residual rises again, as a token's does while its predecessors still move), keeps the best
finite iterate of each, and lets the method propose the next one. A returned residual is always measured on the
returned value.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor

from equilibria.solvers.residual import Groups, relative_residual
from equilibria.solvers.solution import Iterate, Status, no_groups_like, worst
from equilibria.solvers.state import Packing, Scope, State

Map = Callable[[State], State]

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
    def step(self, memory: Any, z: Tensor, f_z: Tensor, groups: Groups) -> tuple[Tensor, Any]:
        """The next iterate and memory, from the latest iterate and the map's value there."""

    @torch.no_grad()
    def solve(self, f: Map, z0: State) -> Iterate:
        """Run the loop on `f` from `z0`, without gradients."""
        packing = Packing.of(z0, self.scope)
        progress = _Progress(self, packing.pack(z0))
        memory = self.init(progress.z, progress.groups)
        while True:
            f_z = progress.measure(packing.pack(f(packing.unpack(progress.z))))
            proposal, memory = (
                (progress.z, memory) if progress.done else self.step(memory, progress.z, f_z, progress.groups)
            )
            if progress.advance(proposal):
                break
        if progress.needs_remeasuring:
            progress.measure(packing.pack(f(packing.unpack(progress.z))))
        return progress.iterate()


class _Progress:
    """The state of one solve: the current and best iterate of every group, and the bookkeeping of its status."""

    def __init__(self, solver: Solver, z: Tensor) -> None:
        self.solver, self.groups, self.z = solver, Groups(solver.scope), z
        self.best, self.proposal = z, z
        self.best_residual = torch.full(z.shape[:-1], torch.inf, device=z.device)
        self.residual = self.best_residual
        self.converged = torch.zeros_like(self.residual, dtype=torch.bool)
        self.broken = self.converged
        self.converged_at = no_groups_like(z)
        self.improved_at = no_groups_like(z)
        self.first_norm = torch.linalg.vector_norm(z, dim=-1).clamp(min=1.0)
        self.norm = self.first_norm
        self.trace: list[float] = []
        self.needs_remeasuring = False

    @property
    def done(self) -> bool:
        """Whether every group has converged at the latest measurement."""
        return bool(self.converged.all())

    def measure(self, f_z: Tensor) -> Tensor:
        """Record the map's value at the current iterate; returns it with non-finite groups replaced by the iterate."""
        count = len(self.trace) + 1
        self.residual = relative_residual(f_z, self.z)
        finite = torch.isfinite(self.residual)
        if not bool(finite.all()):
            self.broken = self.broken | ~finite
            f_z = torch.where(finite.unsqueeze(-1), f_z, self.z)
        self.norm = torch.linalg.vector_norm(f_z, dim=-1)
        converged = self.residual <= self.solver.tol
        self.converged_at = torch.where(converged & ~self.converged, count, self.converged_at)
        self.converged = converged
        self.improved_at = torch.where(
            self.residual < _IMPROVEMENT * self.best_residual, count, self.improved_at
        )
        better = self.residual < self.best_residual
        if bool(better.all()):
            self.best, self.best_residual = self.z, self.residual
        else:
            self.best = torch.where(better.unsqueeze(-1), self.z, self.best)
            self.best_residual = torch.minimum(self.residual, self.best_residual)
        self.trace.append(worst(self.residual))
        return f_z

    def advance(self, proposal: Tensor) -> bool:
        """Move the groups that have not converged; returns whether the solve has ended."""
        finite = torch.isfinite(proposal).all(dim=-1) & torch.isfinite(self.residual)
        proposal = torch.where(finite.unsqueeze(-1), proposal, self.best)
        self.proposal = torch.where(self.converged.unsqueeze(-1), self.z, proposal)
        if self.done or len(self.trace) >= self.solver.max_evaluations:
            self._choose()
            return True
        self.z = self.proposal
        if self.groups.coupled and len(self.trace) == self.solver.max_evaluations - 1:
            # Iterates of coupled groups cannot be mixed after the fact without another evaluation: choose before it.
            astray = ~self.converged & (self.residual > _WORSE * self.best_residual)
            self.z = torch.where(astray.unsqueeze(-1), self.best, self.z)
        return False

    def _choose(self) -> None:
        """Settle on the returned iterate: the best of each sample, the last of coupled groups unless it is broken."""
        if not self.groups.coupled:
            better = (self.best_residual < self.residual) & ~self.converged
            self.z = torch.where(better.unsqueeze(-1), self.best, self.z)
            self.residual = torch.where(better, self.best_residual, self.residual)
        elif not bool(torch.isfinite(self.residual).all()):
            self.z = torch.where(torch.isfinite(self.residual).unsqueeze(-1), self.z, self.best)
            self.needs_remeasuring = True

    def _status(self) -> Status:
        unconverged = ~self.converged
        if not bool(unconverged.any()):
            return Status.CONVERGED
        if bool((self.broken & unconverged).any()):
            return Status.NON_FINITE
        if bool((unconverged & (self.norm > _GROWTH * self.first_norm)).any()):
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
