"""The implicit gradient of the samples that it is right for, a truncated one of the others.

An adjoint of a state that is no solution means nothing, and near a singular Jacobian it is large: one such sample of a
batch outweighs all others, and one such step stays in the moments of Adam for long. The first terms of the adjoint's
Neumann series (Geng et al. 2021, arXiv:2111.05177) are a gradient wherever they are taken, and bounded: of `n` terms,
`1 + ‖J‖ + … + ‖J‖ⁿ⁻¹` times what comes in.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from equilibria.gradients.adjoint import Pullback, PullbackGradient, Tensors, TrackedEvaluation, solve_adjoint
from equilibria.gradients.base import Solve
from equilibria.gradients.neumann import Neumann
from equilibria.solvers import GMRES, AdjointReport, AdjointSolver, Scope, Status, mapped
from equilibria.solvers.mapped import plain
from equilibria.solvers.state import Packing, leaves

_ADVICE = (
    "the first terms of its series took the place of its solution where that was not reached; give "
    "Guarded(solver=GMRES(max_evaluations=...)) more of them"
)


@dataclass(frozen=True)
class Guarded(PullbackGradient):
    """Take `Implicit` where solves succeed, and `Neumann` where one falls short, forward or backward.

    Where a group (a sample, a token) reached the tolerance, its gradient is that of the exact solution. Where it did
    not, it is that of a few evaluations at the state returned, which also teaches a map to converge again. Either is
    decided for each group by itself: as long as the map does not mix them, no group's gradient depends on another's
    failure. Of a map that does mix them, what comes in is split: the part of the groups that converged meets the
    adjoint equation, the other the series, and both spread over all groups.

    It keeps one evaluation, whatever the solve cost, and costs what `Implicit` does, plus `otherwise.terms − 1`
    products where something fell short. The value is that of the solve.

    Args:
        solver: solves the adjoint equation, relative to the size of the incoming gradient; any solver or `GMRES`.
            How it ended is in `solution.adjoint` after `backward`, also where the series took its place.
        otherwise: the series that takes its place.
    """

    solver: AdjointSolver = field(default_factory=lambda: GMRES(tol=1e-3, max_evaluations=60))
    otherwise: Neumann = field(default_factory=Neumann)

    def pullback(self, evaluation: TrackedEvaluation, solve: Solve) -> Pullback:
        """The adjoint equation where the solve reached the tolerance, the series elsewhere."""
        assert solve.iterate is not None
        return _GuardedAdjoint(self, evaluation, solve.solver.scope, solve.iterate.converged, solve.report).pull


@dataclass(eq=False)
class _GuardedAdjoint:
    """The pullback of one evaluation.

    Attributes:
        scope: of the forward solve: its groups are told apart.
        reached: which of them are at a solution, `(*groups,)`.
    """

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
        some, every = bool(known.any()), bool(known.all())
        v = torch.zeros_like(g)
        if some:
            v = self._solved(packing, torch.where(reached, g, 0.0))
        if not every:
            v = v + self._series(packing, torch.where(reached, 0.0, g))
        return tuple(leaves(packing.unpack(v)))

    def _solved(self, packing: Packing, g: Tensor) -> Tensor:
        """The adjoint of `g`, with the series in the groups where its equation was not solved."""
        # Of its own, since the report of the solution keeps the first failure of all backward passes.
        report = replace(self.report, status=None, residual=None, evaluations=0, advice=_ADVICE)
        incoming = tuple(leaves(packing.unpack(g)))
        solved, iterate = solve_adjoint(self.evaluation, incoming, self.gradient.solver, report)
        v = packing.pack(solved)
        self.report.evaluations += report.evaluations
        if self.report.status in (None, Status.CONVERGED):
            self.report.status, self.report.residual = report.status, report.residual
        if iterate.status is Status.CONVERGED:
            return v
        # Its groups may be others than those of the forward solve: samples for tokens, or the whole state.
        right = iterate.converged.reshape(len(iterate.converged), -1).all(-1)
        if len(right) != len(v) or mapped.active():
            right = right.all()
        return torch.where(right.reshape(-1, *[1] * (v.dim() - 1)), v, self._series(packing, g))

    def _series(self, packing: Packing, g: Tensor) -> Tensor:
        return packing.pack(self.gradient.otherwise.sum(self.evaluation, tuple(leaves(packing.unpack(g))), self.report))
