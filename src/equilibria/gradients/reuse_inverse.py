"""The forward solve's inverse Jacobian, reused in the backward pass (SHINE: Ramzi et al. 2021, arXiv:2106.00553)."""

from dataclasses import dataclass, replace

import torch

from equilibria.gradients.adjoint import Pullback, PullbackGradient, Tensors, TrackedEvaluation, solve_adjoint
from equilibria.gradients.base import Solve
from equilibria.ranges import instance
from equilibria.solvers import AdjointSolver, Broyden
from equilibria.solvers.residual import Groups
from equilibria.solvers.state import Packing, fitting, leaves


@dataclass(frozen=True)
class ReuseInverse(PullbackGradient):
    """Take for `v` the product of `g` with the transposed inverse that Broyden's method built during the solve.

    Costs no product with the Jacobian. It knows the directions the solve moved in and treats all others as the
    Jacobian-free gradient does, which takes its place where the product is not finite.

    Args:
        refine: solves the adjoint equation from there, with a budget of a few evaluations; None does not. How it ended
            is in `solution.adjoint`.
    """

    refine: AdjointSolver | None = None

    @property
    def in_transforms(self) -> bool:
        return False

    def __post_init__(self) -> None:
        instance(AdjointSolver | None, "GMRES(max_evaluations=5)", refine=self.refine)

    def pullback(self, evaluation: TrackedEvaluation, solve: Solve) -> Pullback:
        """The product with the inverse, refined; raises TypeError where the solver was not Broyden."""
        solver, iterate, report = solve.solver, solve.iterate, solve.report
        if not isinstance(solver, Broyden):
            raise TypeError(
                f"ReuseInverse needs the pairs of Broyden as the forward solver, found {type(solver).__name__}; "
                "pass solver=Broyden(...), or another gradient such as Implicit()"
            )
        assert iterate is not None
        memory, units = iterate.memory, iterate.units

        def pull(incoming: Tensors) -> Tensors:
            packing = Packing.of(incoming, solver.scope)
            g = packing.pack(incoming)
            # The memory is in the units of its solve, whose transpose are the inverse ones.
            its = replace(packing, units=units)
            v = its.scaled(solver.transposed_inverse(memory, its.plain(g), Groups(solver.scope)))
            v = torch.where(torch.isfinite(v), v, g)
            reused = tuple(leaves(packing.unpack(v)))
            if self.refine is None:
                return reused
            start = Packing.of(incoming, fitting(incoming, "sample")).pack(reused)
            return solve_adjoint(evaluation, incoming, self.refine, report, start)[0]

        return pull
