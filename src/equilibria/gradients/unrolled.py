"""The unrolled gradient: ordinary backpropagation through plain iteration. The oracle for every other gradient."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.utils.checkpoint import checkpoint as recompute

from equilibria.gradients.base import Attached, Gradient, Solve
from equilibria.solvers import Map, State
from equilibria.solvers.state import leaves, leaves_as, rebuild


@dataclass(frozen=True)
class Unrolled(Gradient):
    """Apply the map `steps` times from `z0` with gradients; of the solver only `tol` and `scope` are used, to measure.

    Args:
        steps: evaluations, at least 1.
        checkpoint: keep only the state between evaluations and recompute the rest in the backward pass,
            where whatever the map reads must still be the same (after `torch.func.functional_call` it is not).
    """

    steps: int = 18
    checkpoint: bool = False
    begins_at: ClassVar = "start"

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, found {self.steps}")

    def attach(self, f: Map, state: State, solve: Solve) -> Attached:
        """Iterate with gradients; the wanted iterates are those on the way."""
        return unroll(f, state, self.steps, 1.0, self.checkpoint, solve.wanted)


def unroll(f: Map, z: State, steps: int, damping: float, checkpoint: bool, wanted: Collection[int] = ()) -> Attached:
    """`steps ≥ 1` damped evaluations from `z`, with gradients on; each recomputed in the backward pass on request.

    Returns the last iterate, its tracked evaluation the last one, with the iterates whose number is in `wanted`.
    """
    first = last = None
    iterates: dict[int, State] = {}
    with torch.enable_grad():
        for step in range(steps):
            if step in wanted:
                iterates[step] = z
            value = recompute(f, z, use_reentrant=False) if checkpoint else f(z)
            last = z, value
            first = first or last
            # A state keeps its dtype, also where the map computes in another, as under autocast.
            parts = (part.to(leaf.dtype) for leaf, part in zip(leaves(z), leaves_as(z, value), strict=True))
            if damping < 1.0:
                parts = (torch.lerp(a, b, damping) for a, b in zip(leaves(z), parts, strict=True))
            z = rebuild(z, parts)
    return Attached(z, last, steps, first, iterates=iterates)
