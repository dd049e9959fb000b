"""The truncated Neumann series of the adjoint (Geng et al. 2021, arXiv:2111.05177; Lorraine et al. 2019,
arXiv:1911.02590)."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from equilibria.gradients.adjoint import Evaluation, Tensors, attach, evaluate
from equilibria.gradients.base import solve_and_differentiate
from equilibria.solvers import AdjointReport, Iterate, Map, Solution, Solver, State
from equilibria.solvers.state import rebuild


@dataclass(frozen=True)
class Neumann:
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

    def attach(self, f: Map, z0: State, solver: Solver, iterates: Collection[int] = ()) -> Solution:
        """Solve without gradients, then attach the graph of one evaluation."""

        def differentiate(state: State, _: Iterate, report: AdjointReport) -> tuple[State, tuple[State, State]]:
            evaluation, tracked = evaluate(f, state)
            attached = attach(evaluation, lambda incoming: self.sum(evaluation, incoming, report))
            return rebuild(state, iter(attached)), tracked

        return solve_and_differentiate(f, z0, solver, iterates, differentiate)

    def sum(self, evaluation: Evaluation, incoming: Tensors, report: AdjointReport) -> Tensors:
        """`v`, on the graph of one evaluation."""
        total = incoming
        for _ in range(self.terms - 1):
            product = evaluation.transposed(total)
            total = tuple(part + g for part, g in zip(product, incoming, strict=True))
        report.evaluations += self.terms - 1
        return total
