"""The implicit gradient where a solve converged, a truncated one where it did not: per group, or per batch.

The adjoint of a state that is no solution means nothing, and near a singular Jacobian it is large: one such sample
outweighs the rest of a batch, and one such step stays in the moments of Adam for long. The first terms of the adjoint's
Neumann series (Geng et al. 2021, arXiv:2111.05177) are a gradient anywhere, and bounded: of `n` terms,
`1 + ‖J‖ + … + ‖J‖ⁿ⁻¹` times what comes in. So is the phantom gradient, that of a truncated computation wherever it
starts; training with either brings convergence back.
"""

from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from equilibria.gradients.adjoint import Pullback, PullbackGradient, Tensors, TrackedEvaluation, solve_adjoint
from equilibria.gradients.base import Attached, Gradient, Solve
from equilibria.gradients.implicit import Implicit
from equilibria.gradients.neumann import Neumann
from equilibria.gradients.unrolled import Phantom
from equilibria.ranges import instance, share
from equilibria.solvers import GMRES, AdjointReport, AdjointSolver, Map, Picard, Scope, State, Status, mapped
from equilibria.solvers.mapped import plain
from equilibria.solvers.state import Packing, leaves

_ADVICE = (
    "the first terms of its series took the place of its solution where that was not reached; give "
    "Guarded(solver=GMRES(max_evaluations=...)) more of them"
)


@dataclass(frozen=True)
class Guarded(PullbackGradient):
    """Take `Implicit` where solves succeed, and `Neumann` where one falls short, forward or backward.

    Where a group (a sample, a token) reached the tolerance, its gradient is that of the exact solution; elsewhere that
    of a few evaluations at the state returned. Each group is judged by itself: unless the map mixes groups, no group's
    gradient depends on another's failure. If it does, the incoming gradient is split: the part of the groups that
    converged goes through the adjoint equation, the rest through the series, and both spread over all groups.

    It keeps one evaluation, and costs what `Implicit` does, plus `otherwise.terms − 1` products where something fell
    short. The value is that of the solve.

    Args:
        solver: solves the adjoint equation, relative to the size of the incoming gradient; any solver or `GMRES`.
            How it ended is in `solution.adjoint` after `backward`, also where the series took its place.
        otherwise: that series.
    """

    solver: AdjointSolver = field(default_factory=lambda: GMRES(tol=1e-3, max_evaluations=60))
    otherwise: Neumann = field(default_factory=Neumann)

    def __post_init__(self) -> None:
        instance(AdjointSolver, "GMRES()", solver=self.solver)
        instance(Neumann, "Neumann()", otherwise=self.otherwise)

    def pullback(self, evaluation: TrackedEvaluation, solve: Solve) -> Pullback:
        assert solve.iterate is not None
        return _GuardedAdjoint(self, evaluation, solve.solver.scope, solve.iterate.converged, solve.report).pull


@dataclass(eq=False)
class _GuardedAdjoint:
    """The pullback of one evaluation; `reached`, `(*groups,)`, are the groups of `scope` that are at a solution."""

    gradient: Guarded
    evaluation: TrackedEvaluation
    scope: Scope
    reached: Tensor
    report: AdjointReport

    def pull(self, incoming: Tensors) -> Tensors:
        """`v`, from the adjoint equation, the series, or both."""
        packing = Packing.of(incoming, self.scope)
        g, reached = packing.pack(incoming), self.reached.unsqueeze(-1)
        known = plain(self.reached)
        v = self._solved(packing, torch.where(reached, g, 0.0)) if bool(known.any()) else torch.zeros_like(g)
        if not bool(known.all()):
            v = v + self._series(packing, torch.where(reached, 0.0, g))
        return tuple(leaves(packing.unpack(v)))

    def _solved(self, packing: Packing, g: Tensor) -> Tensor:
        """The adjoint of `g`, with the series in the groups where its equation was not solved."""
        # A report of its own: that of the solution keeps the first failure of all backward passes.
        report = replace(self.report, status=None, residual=None, evaluations=0, advice=_ADVICE)
        incoming = tuple(leaves(packing.unpack(g)))
        solved, iterate = solve_adjoint(self.evaluation, incoming, self.gradient.solver, report)
        v = packing.pack(solved)
        self.report.evaluations += report.evaluations
        if self.report.status in (None, Status.CONVERGED):
            self.report.status, self.report.residual = report.status, report.residual
        if iterate.status is Status.CONVERGED:
            return v
        # Its groups may differ from those of the forward solve: samples for tokens, or the whole state.
        right = iterate.converged.reshape(len(iterate.converged), -1).all(-1)
        if len(right) != len(v) or mapped.active():
            right = right.all()
        return torch.where(right.reshape(-1, *[1] * (v.dim() - 1)), v, self._series(packing, g))

    def _series(self, packing: Packing, g: Tensor) -> Tensor:
        return packing.pack(self.gradient.otherwise.sum(self.evaluation, tuple(leaves(packing.unpack(g))), self.report))


@dataclass(frozen=True)
class Switching(Gradient):
    """Take one gradient where enough of a batch converged, and another where it did not.

    A batch decides as a whole, and in distributed training each process for its own rows: in training, phantom steps
    may have moved the value of a row because of its neighbours. Evaluation takes no gradient: rows stay apart.

    Either way the solution's tracked evaluation, which a residual penalty reads, is the one at the end of the solve.

    Args:
        converged: the implicit gradient. Its default solves the adjoint equation to a relative residual of 5 % by
            plain iteration: digits below the noise of a batch are not worth their time.
        otherwise: the phantom gradient. Its default keeps only states, so that a step needs little more memory than
            one evaluation.
        share: of the groups of a solve (samples, or tokens) that must have reached the tolerance, `0 < share ≤ 1`.
    """

    converged: Implicit = field(default_factory=lambda: Implicit(Picard(tol=5e-2, max_evaluations=10, scope="sample")))
    otherwise: Phantom = field(default_factory=lambda: Phantom(steps=5, checkpoint=True))
    share: float = 0.99
    begins_at: ClassVar = "proposal"

    def __post_init__(self) -> None:
        instance(Implicit, "Implicit()", converged=self.converged)
        instance(Gradient, "Phantom(steps=5)", otherwise=self.otherwise)
        share(share=self.share)

    def attach(self, f: Map, state: State, solve: Solve) -> Attached:
        assert solve.iterate is not None
        done = plain(solve.iterate.converged)
        if done.sum() >= self.share * done.numel():
            return self.converged.attach(f, state, solve)
        # Transforms take no hooks, which drop what a graph saves; their graph is short-lived anyway.
        otherwise: Gradient = self.otherwise
        if mapped.active() and isinstance(otherwise, Phantom):
            otherwise = replace(otherwise, checkpoint=False)
        attached = otherwise.attach(f, state, solve)
        return replace(attached, tracked=attached.first)
