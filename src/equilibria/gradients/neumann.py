"""The truncated Neumann series of the adjoint (Geng et al. 2021, arXiv:2111.05177; Lorraine et al. 2019,
arXiv:1911.02590), and its first term alone, the Jacobian-free gradient (Fung et al. 2021, arXiv:2103.12803)."""

from dataclasses import dataclass
from typing import ClassVar

from equilibria.gradients.adjoint import Pullback, PullbackGradient, Tensors, TrackedEvaluation
from equilibria.gradients.base import Solve
from equilibria.ranges import whole
from equilibria.solvers import AdjointReport


@dataclass(frozen=True)
class JacobianFree(PullbackGradient):
    """Take `v = g` where the implicit gradient solves `v = Jᵀ v + g`: a backward pass of one evaluation.

    A descent direction for maps that contract enough; `gradient_error` tells how far it is off.
    """

    needs_products: ClassVar[bool] = False

    def pullback(self, evaluation: TrackedEvaluation, solve: Solve) -> Pullback:
        return lambda incoming: incoming


@dataclass(frozen=True)
class Neumann(PullbackGradient):
    """Take `v = g + Jᵀ g + (Jᵀ)² g + …` up to `terms` terms, by products on the one stored evaluation.

    The error falls like the powers of the Jacobian, so the series needs a map that contracts. The cost is fixed: no
    tolerance is checked, and only `solution.adjoint.evaluations` is filled in.

    Args:
        terms: of the series, at least 1; each after the first costs one vector-Jacobian product.
    """

    terms: int = 5

    def __post_init__(self) -> None:
        whole(1, terms=self.terms)

    def pullback(self, evaluation: TrackedEvaluation, solve: Solve) -> Pullback:
        report = solve.report
        return lambda incoming: self.sum(evaluation, incoming, report)

    def sum(self, evaluation: TrackedEvaluation, incoming: Tensors, report: AdjointReport) -> Tensors:
        """`v`, on the graph of one evaluation."""
        total = incoming
        for _ in range(self.terms - 1):
            product = evaluation.transposed(total)
            total = tuple(part + g for part, g in zip(product, incoming, strict=True))
        report.evaluations += self.terms - 1
        return total
