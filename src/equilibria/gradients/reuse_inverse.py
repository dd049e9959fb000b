"""The forward solve's inverse Jacobian, reused in the backward pass (SHINE: Ramzi et al. 2021, arXiv:2106.00553)."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch

from equilibria.gradients.adjoint import Evaluation, Tensors, attach, evaluate, solve_adjoint
from equilibria.gradients.base import solve_and_differentiate
from equilibria.solvers import GMRES, AdjointReport, Broyden, Iterate, Map, Solution, Solver, State
from equilibria.solvers.residual import Groups
from equilibria.solvers.state import Packing, fitting, leaves, rebuild


@dataclass(frozen=True)
class ReuseInverse:
    """Take for `v` the product of `g` with the transposed inverse that Broyden's method built on its way.

    Costs no product with the Jacobian. It knows the directions the solve moved in and treats all others as the
    Jacobian-free gradient does. Where the product is not finite, that gradient takes its place.

    Args:
        refine: solves the adjoint equation from there on, with a budget of a few evaluations; None for none. How it
            ended is in `solution.adjoint`.
    """

    refine: Solver | GMRES | None = None

    def attach(self, f: Map, z0: State, solver: Solver, iterates: Collection[int] = ()) -> Solution:
        """Solve with Broyden's method, then attach the graph of one evaluation.

        Raises:
            TypeError: the solver is another one.
        """
        if not isinstance(solver, Broyden):
            raise TypeError(
                f"ReuseInverse needs the pairs of Broyden as the forward solver, found {type(solver).__name__}; "
                "pass solver=Broyden(...), or another gradient such as Implicit()"
            )

        def differentiate(state: State, iterate: Iterate, report: AdjointReport) -> tuple[State, tuple[State, State]]:
            evaluation, tracked = evaluate(f, state)
            attached = attach(evaluation, lambda incoming: self._pull(evaluation, incoming, solver, iterate, report))
            return rebuild(state, iter(attached)), tracked

        return solve_and_differentiate(f, z0, solver, iterates, differentiate)

    def _pull(
        self, evaluation: Evaluation, incoming: Tensors, solver: Broyden, iterate: Iterate, report: AdjointReport
    ) -> Tensors:
        packing = Packing.of(incoming, solver.scope)
        g = packing.pack(incoming)
        # The memory is in the units of its solve, whose transposed are the inverse ones.
        units = iterate.gauge.packing if iterate.gauge is not None else packing
        v = units.scaled(solver.transposed_inverse(iterate.memory, units.plain(g), Groups(solver.scope)))
        v = torch.where(torch.isfinite(v), v, g)
        reused = tuple(leaves(packing.unpack(v)))
        if self.refine is None:
            return reused
        start = Packing.of(incoming, fitting(incoming, "sample")).pack(reused)
        return solve_adjoint(evaluation, incoming, self.refine, report, start)[0]
