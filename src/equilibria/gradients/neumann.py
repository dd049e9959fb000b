"""The truncated Neumann series of the adjoint (Geng et al. 2021, arXiv:2111.05177; Lorraine et al. 2019,
arXiv:1911.02590)."""

from __future__ import annotations

from dataclasses import dataclass

from equilibria.gradients.adjoint import Pullback, PullbackGradient, Tensors, TrackedEvaluation
from equilibria.gradients.base import Solve
from equilibria.solvers import AdjointReport


@dataclass(frozen=True)
class Neumann(PullbackGradient):
    """Take `v = g + Jᵀ g + (Jᵀ)² g + …` up to `terms` terms, by products on the one stored evaluation.

    The error falls like the powers of the Jacobian, so the series needs a map that contracts. One term is the
    Jacobian-free gradient. A fixed cost: no tolerance is checked, and of `solution.adjoint` only the number of
    evaluations is filled in.

    Args:
        terms: of the series, at least 1; each after the first costs one vector-Jacobian product.
    """

    terms: int = 5

    def __post_init__(self) -> None:
        if self.terms < 1:
            raise ValueError(f"terms must be at least 1, found {self.terms}")

    def pullback(self, evaluation: TrackedEvaluation, solve: Solve) -> Pullback:
        """The sum of the series."""
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
