"""The depth of a deep equilibrium model: until nothing changes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from equilibria.depths.base import Reached
from equilibria.diagnostics import residual_penalty
from equilibria.fixed_point import fixed_point
from equilibria.gradients import Gradient, Phantom
from equilibria.solvers import Picard, Solver


@dataclass(frozen=True)
class Equilibrium:
    """Solve for the fixed point. What did not converge is reported in the solution, not raised.

    The default solvers are causal: their scope is `"prefix"`.

    Args:
        solver: how to solve in training.
        gradient: how to differentiate in training.
        eval_solver: how to solve in evaluation.
        residual_penalty: weight, in the training loss, of the mean residual at the last tracked evaluation. It keeps
            the map converging where learning alone would let it go.
    """

    solver: Solver = field(default_factory=lambda: Picard(tol=1e-2, max_evaluations=4, scope="prefix"))
    gradient: Gradient = field(default_factory=lambda: Phantom(steps=7))
    eval_solver: Solver = field(default_factory=lambda: Picard(tol=5e-3, max_evaluations=10, scope="prefix"))
    residual_penalty: float = 2.5

    def __post_init__(self) -> None:
        if not self.residual_penalty >= 0:
            raise ValueError(f"residual_penalty must be at least 0, found {self.residual_penalty}")

    def reach(self, f: Callable[[Tensor], Tensor], z0: Tensor, training: bool) -> Reached:
        """Solve `z = f(z)` from `z0`."""
        solver = self.solver if training else self.eval_solver
        solution = fixed_point(f, z0, solver, self.gradient, on_failure="ignore")
        penalty = None
        if training and self.residual_penalty and solution.tracked is not None:
            penalty = self.residual_penalty * residual_penalty(solution)
        return Reached(solution.value, solution, penalty)
