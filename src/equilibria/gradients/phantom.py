"""The phantom gradient (Geng et al. 2021, arXiv:2111.05177): differentiate a few damped evaluations after the solve."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from equilibria.gradients.base import solution_after, with_all_iterates
from equilibria.gradients.unrolled import track
from equilibria.solvers import Iterate, Map, Solution, Solver, State
from equilibria.solvers.picard import check_damping
from equilibria.solvers.state import Packing


@dataclass(frozen=True)
class Phantom:
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

    def __post_init__(self) -> None:
        check_damping(self.damping)
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, found {self.steps}")

    def attach(self, f: Map, z0: State, solver: Solver, iterates: Collection[int] = ()) -> Solution:
        """Solve without gradients, then unroll with them, from the solution and from each of `iterates`."""
        return self.after(f, z0, solver, solver.solve(f, z0, propose=True, iterates=iterates), iterates)

    def after(
        self,
        f: Map,
        z0: State,
        solver: Solver,
        iterate: Iterate,
        iterates: Collection[int] = (),
        at_end_of_solve: bool = False,
    ) -> Solution:
        """Unroll with gradients from the proposal of a solve that is done, and from each iterate that it kept.

        The solution's tracked evaluation is the last one or, with `at_end_of_solve`, the first.
        """

        def unrolled(state: State) -> tuple[tuple[State, State], tuple[State, State], State]:
            return track(f, state, self.steps, self.damping, self.checkpoint)

        first, last, value = unrolled(Packing.of(z0, solver.scope).unpack(iterate.proposal))
        solution = solution_after(f, value, solver, iterate, self.steps, first)
        solution.tracked = first if at_end_of_solve else last
        solution.iterates = {number: unrolled(state)[2] for number, state in iterate.iterates.items()}
        return with_all_iterates(solution, iterates, iterate.status)
