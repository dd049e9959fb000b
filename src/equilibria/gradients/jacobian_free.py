"""The Jacobian-free gradient (Fung et al. 2021, arXiv:2103.12803): that of one evaluation at the solution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from equilibria.gradients.adjoint import Pullback, PullbackGradient, TrackedEvaluation
from equilibria.gradients.base import Solve


@dataclass(frozen=True)
class JacobianFree(PullbackGradient):
    """Take `v = g` where the implicit gradient solves `v = Jᵀ v + g`: a backward pass of one evaluation.

    A descent direction for maps that contract enough; `gradient_error` tells how far it is off. The value stays that
    of the solve, so its residual is known without another evaluation.
    """

    needs_products: ClassVar[bool] = False

    def pullback(self, evaluation: TrackedEvaluation, solve: Solve) -> Pullback:
        """The gradient as it comes in."""
        return lambda incoming: incoming
