"""The unrolled gradient: ordinary backpropagation through plain iteration. The oracle for every other gradient."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch.utils.checkpoint import checkpoint as recompute

from equilibria.gradients.base import solution_after, with_all_iterates
from equilibria.solvers import Map, Solution, Solver, State
from equilibria.solvers.state import leaves, leaves_as, rebuild


@dataclass(frozen=True)
class Unrolled:
    """Apply the map `steps` times from `z0` with gradients; of the solver only `tol` and `scope` are used, to measure.

    Args:
        steps: evaluations, at least 1.
        checkpoint: keep only the state between evaluations and recompute the rest in the backward pass,
            where whatever the map reads must still be the same (after `torch.func.functional_call` it is not).
    """

    steps: int = 18
    checkpoint: bool = False

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, found {self.steps}")

    def attach(self, f: Map, z0: State, solver: Solver, iterates: Collection[int] = ()) -> Solution:
        """Iterate with gradients and measure the residual of the result; `iterates` are those on the way."""
        kept: dict[int, State] = {}
        first, last, value = track(f, z0, self.steps, 1.0, self.checkpoint, iterates, kept)
        solution = solution_after(f, value, solver, None, self.steps, first)
        solution.tracked, solution.iterates = last, kept
        return with_all_iterates(solution, iterates, solution.status)


def track(
    f: Map,
    z: State,
    steps: int,
    damping: float,
    checkpoint: bool,
    wanted: Collection[int] = (),
    kept: dict[int, State] | None = None,
) -> tuple[tuple[State, State], tuple[State, State], State]:
    """`steps ≥ 1` damped evaluations from `z`, with gradients on; each recomputed in the backward pass on request.

    Iterates with a number in `wanted` are put into `kept`. Returns the first and the last evaluation `(z, f(z))`, and
    the last iterate.
    """
    first = last = None
    with torch.enable_grad():
        for step in range(steps):
            if kept is not None and step in wanted:
                kept[step] = z
            value = recompute(f, z, use_reentrant=False) if checkpoint else f(z)
            last = z, value
            first = first or last
            # A state keeps its dtype, also where the map computes in another, as under autocast.
            parts = (part.to(leaf.dtype) for leaf, part in zip(leaves(z), leaves_as(z, value), strict=True))
            if damping < 1.0:
                parts = (torch.lerp(a, b, damping) for a, b in zip(leaves(z), parts, strict=True))
            z = rebuild(z, parts)
    assert first is not None
    assert last is not None
    return first, last, z
