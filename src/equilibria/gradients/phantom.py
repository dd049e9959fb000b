"""The phantom gradient (Geng et al. 2021, arXiv:2111.05177): differentiate a few damped evaluations after the solve."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from equilibria.gradients.base import Attached, Gradient, Solve
from equilibria.gradients.unrolled import unroll
from equilibria.solvers import Map, State
from equilibria.solvers.picard import check_damping


@dataclass(frozen=True)
class Phantom(Gradient):
    """Unroll `z ← (1 − λ) z + λ f(z)` from the solve's last proposal, with gradients.

    Approximates the implicit gradient near a solution, and stays a true gradient of a truncated computation far from
    one. The value is that of the last evaluation; its residual is measured by one evaluation more.

    Args:
        steps: tracked evaluations, at least 1.
        damping: `λ`, `0 < λ ≤ 1`.
        checkpoint: keep only the state between tracked evaluations and recompute the rest in the backward pass,
            where whatever the map reads must still be the same (after `torch.func.functional_call` it is not).
    """

    steps: int = 5
    damping: float = 1.0
    checkpoint: bool = False
    begins_at: ClassVar = "proposal"

    def __post_init__(self) -> None:
        check_damping(self.damping)
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, found {self.steps}")

    def attach(self, f: Map, state: State, solve: Solve) -> Attached:
        """Unroll with gradients."""
        start = state if solve.proposal is None else solve.proposal
        return unroll(f, start, self.steps, self.damping, self.checkpoint)
