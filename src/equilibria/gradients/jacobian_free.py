"""The Jacobian-free gradient (Fung et al. 2021, arXiv:2103.12803): that of one evaluation at the solution."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from equilibria.gradients.adjoint import attach, evaluate
from equilibria.gradients.base import solve_and_differentiate
from equilibria.solvers import AdjointReport, Iterate, Map, Solution, Solver, State
from equilibria.solvers.state import rebuild


@dataclass(frozen=True)
class JacobianFree:
    """Take `v = g` where the implicit gradient solves `v = Jᵀ v + g`: a backward pass of one evaluation.

    A descent direction for maps that contract enough; how far it is off, `gradient_error` tells. The value stays that
    of the solve, so its residual is known without another evaluation.
    """

    def attach(self, f: Map, z0: State, solver: Solver, iterates: Collection[int] = ()) -> Solution:
        """Solve without gradients, then attach the graph of one evaluation as it is."""

        def differentiate(state: State, _: Iterate, report: AdjointReport) -> tuple[State, tuple[State, State]]:
            evaluation, tracked = evaluate(f, state, anchored=False)
            return rebuild(state, iter(attach(evaluation, lambda incoming: incoming))), tracked

        return solve_and_differentiate(f, z0, solver, iterates, differentiate)
