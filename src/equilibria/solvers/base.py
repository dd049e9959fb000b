"""The one solve loop. A method is a frozen dataclass with `init` and `step`; everything else happens here, per group.

The loop evaluates the map, measures each group's residual, freezes the groups that are within the tolerance (and
releases them when their residual rises again, as a token's does while its predecessors still move), keeps the best
finite iterate of each, and lets the method propose the next one. A returned residual is always measured on the
returned value: once the budget is spent, by one evaluation more.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from equilibria.ranges import above, at_least, instance, one_of, whole
from equilibria.solvers.few import Recorded, are_few, solve_few
from equilibria.solvers.mapped import on_plain_tensors
from equilibria.solvers.point import CountedMap, Map, Point
from equilibria.solvers.progress import SolveState
from equilibria.solvers.residual import Criterion, Groups
from equilibria.solvers.solution import Iterate, Status
from equilibria.solvers.state import Packing, Scope, State, leaves


@dataclass(frozen=True, kw_only=True)
class Draft:
    """Solve in low precision (`torch.autocast`) first, and start from there. It does not lower states of float64.

    Worth it where matrix products are several times faster in low precision; the evaluations that count, and every
    residual returned, stay in full precision. Every group is drafted to its own tolerance and with a budget of its own,
    so that scopes stay as causal and as independent of the batch as without a draft.

    Args:
        dtype: `torch.bfloat16` or `torch.float16`.
        tol: relative residual at which a group's draft is done; the rounding of `dtype` has to allow it.
        max_evaluations: of the draft, on top of the solver's own.
    """

    dtype: torch.dtype = torch.bfloat16
    tol: float = 5e-3
    max_evaluations: int = 40

    def __post_init__(self) -> None:
        if self.dtype not in (torch.bfloat16, torch.float16):
            raise ValueError(f"dtype must be torch.bfloat16 or torch.float16, found {self.dtype}")
        above(0, tol=self.tol)
        whole(1, max_evaluations=self.max_evaluations)

    def lowered(self, f: Map) -> Map:
        """`f` under autocast."""

        def low(z: State) -> State:
            device = next(leaves(z)).device.type
            with torch.autocast(device, self.dtype):
                return f(z)

        return low


@dataclass(frozen=True, kw_only=True)
class AdjointSolver(ABC):
    """Solves affine equations, as adjoints are, or any: every `Solver`, and `GMRES`.

    Args:
        tol: residual at which a group has converged.
        max_evaluations: most applications of the map.
        scope: what a group is: `"sample"`, `"token"`, `"prefix"` or `"all"`. Tokens and prefixes are causal for causal
            maps; `"all"` takes the whole state as one, for maps that couple samples (batch norm, the nodes of a graph).
        criterion: what a residual is: `"relative"`, `‖f(z) − z‖ / ‖f(z)‖` of the worst leaf of the state, or
            `"absolute"`, `‖f(z) − z‖`, which suits a solution of zero.
    """

    tol: float = 1e-3
    max_evaluations: int = 40
    scope: Scope = "sample"
    criterion: Criterion = "relative"

    def __post_init__(self) -> None:
        at_least(0, tol=self.tol)
        whole(1, max_evaluations=self.max_evaluations)
        one_of(Scope, scope=self.scope)
        one_of(Criterion, criterion=self.criterion)

    @abstractmethod
    def solve(self, f: Map, z0: State) -> Iterate:
        """Solve `z = f(z)` from `z0`, without gradients."""

    def scoped(self, scope: Scope) -> Self:
        """This solver with groups of another scope."""
        return replace(self, scope=scope)


@dataclass(frozen=True, kw_only=True)
class Solver(AdjointSolver):
    """Solves `z = f(z)`.

    A solve that does not converge within `max_evaluations` takes one more, to measure what is returned, and another
    where the best iterates of the groups come from different evaluations. `Solution.evaluations` counts them all.

    Args:
        draft: start from a solve in low precision; None starts from `z0`.
        fallback: solves again where groups have not converged: those from `z0`, the others from their solutions. None
            leaves them as they are.
        check_every: evaluations between checks for convergence, each of which makes the host wait for the device.
        trace_groups: whether to return the residual of every group after each evaluation too.

    Attributes:
        short: whether steps need nothing of a point but its tensors, so that few tokens are solved by a shorter loop.
    """

    short: ClassVar[bool] = False

    draft: Draft | None = None
    fallback: Solver | None = None
    check_every: int = 1
    trace_groups: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        whole(1, check_every=self.check_every)
        instance(Draft | None, "Draft()", draft=self.draft)
        instance(Solver | None, "NewtonKrylov()", fallback=self.fallback)
        if self.fallback is not None and self.fallback.scope != self.scope:
            raise ValueError(f"a fallback solves the same groups; found scopes {self.scope!r}, {self.fallback.scope!r}")

    @abstractmethod
    def init(self, z: Tensor, groups: Groups) -> Any:
        """The method's memory before the first step, for iterates like `z`, `(*groups, features)`."""

    @abstractmethod
    def step(self, memory: Any, point: Point, groups: Groups) -> tuple[Tensor, Any]:
        """The next iterate, `(*groups, features)` and finite, and memory, from the latest measured point. It must not
        change the point's tensors or make the host wait for the device."""

    @property
    def most_evaluations(self) -> int:
        """The budget, with those of the draft and of the fallback."""
        drafted = 0 if self.draft is None else self.draft.max_evaluations
        return drafted + self.max_evaluations + (0 if self.fallback is None else self.fallback.most_evaluations)

    def scoped(self, scope: Scope) -> Self:
        fallback = None if self.fallback is None else self.fallback.scoped(scope)
        return replace(self, scope=scope, fallback=fallback)

    @on_plain_tensors
    @torch.no_grad()
    def solve(self, f: Map, z0: State, propose: bool = False, iterates: Collection[int] = ()) -> Iterate:
        """Solve `z = f(z)` from `z0`, without gradients.

        Args:
            propose: whether to return the iterate that would come after the last evaluation too.
            iterates: numbers of iterates to return as well; iterate `k` comes after `k` evaluations.
        """
        first = self._drafted(f, z0, propose, iterates)
        if self.fallback is None or first.status is Status.CONVERGED:
            return first
        # Where a group starts depends on that group alone: it neither looks ahead nor at other samples.
        packing = Packing.of(z0, self.scope)
        start = torch.where(first.converged.unsqueeze(-1), first.value, packing.pack(z0))
        same = {"tol": self.tol, "criterion": self.criterion, "trace_groups": self.trace_groups}
        second = replace(self.fallback, **same).solve(f, packing.unpack(start), propose, first.left_of(iterates))
        again = first.converged & second.converged & (second.group_evaluations <= 1)
        both = second.after(first)
        counts = torch.where(again, first.group_evaluations, both.group_evaluations)
        return replace(both, group_evaluations=counts, memory=first.memory, units=first.units)

    def _drafted(self, f: Map, z0: State, propose: bool, iterates: Collection[int]) -> Iterate:
        if self.draft is None:
            return self._solve(f, z0, propose, iterates)
        tol = max(self.draft.tol, self.tol if self.criterion == "relative" else 0.0)
        options = {"tol": tol, "max_evaluations": self.draft.max_evaluations, "criterion": "relative"}
        # What it proposes last is not measured: that is for the solve that starts there.
        drafted = replace(self, draft=None, **options)._solve(self.draft.lowered(f), z0, True, iterates)
        drafted.memory = None  # or it would be held beside that of the second solve
        packing = Packing.of(z0, self.scope)
        start = drafted.proposal
        if drafted.astray is not None:
            start = torch.where(drafted.astray.unsqueeze(-1), packing.pack(z0), start)
        return self._solve(f, packing.unpack(start), propose, drafted.left_of(iterates)).after(drafted)

    def _solve(self, f: Map, z0: State, propose: bool, iterates: Collection[int]) -> Iterate:
        asked = propose or iterates or self.trace_groups or self.check_every > 1 or self.scope in ("sample", "all")
        if asked or not self.short or not are_few(z0):
            return self._solve_any(f, z0, propose, iterates)
        made = Recorded(f)
        found = solve_few(self, made, z0)
        if found is not None:
            return found
        made.replay()
        return self._solve_any(made, z0, propose, iterates)

    def _solve_any(self, f: Map, z0: State, propose: bool, iterates: Collection[int]) -> Iterate:
        packing = Packing.of(z0, self.scope)
        apply = CountedMap(f, packing, self.max_evaluations if propose else self.max_evaluations + 1, self.check_every)
        progress = SolveState(self, packing, z0, apply, frozenset(iterates))
        memory = self.init(progress.z, progress.groups)
        while True:
            point = progress.measure()
            if progress.done or (apply.spent and not propose):
                break
            proposal, memory = self.step(memory, point, progress.groups)
            progress.advance(proposal)
            if apply.spent:
                break
            progress.move()
        progress.settle()
        return replace(progress.iterate(), memory=memory, units=progress.packing.units)
