"""Backpropagation through plain iteration: all of it (`Unrolled`, the oracle for every other gradient), or a few damped
evaluations after the solve (`Phantom`: Geng et al. 2021, arXiv:2111.05177)."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.utils.checkpoint import checkpoint as recompute

from equilibria.gradients.base import Attached, Gradient, Solve
from equilibria.gradients.recomputed import verify
from equilibria.ranges import share, whole
from equilibria.solvers import Map, State
from equilibria.solvers.state import leaves, leaves_as, rebuild


@dataclass(frozen=True)
class Unrolled(Gradient):
    """Apply the map `steps` times from `z0` with gradients; of the solver only `tol` and `scope` are used, to measure.

    This is a way to take gradients: where they are off (`torch.no_grad()`), the solver solves as ever.

    Args:
        steps: evaluations, at least 1.
        checkpoint: keep only the state between evaluations and recompute the rest in the backward pass,
            where whatever the map reads must still be the same (after `torch.func.functional_call` it is not).
    """

    steps: int = 18
    checkpoint: bool = False
    begins_at: ClassVar = "start"

    @property
    def in_transforms(self) -> bool:
        return not self.checkpoint

    def __post_init__(self) -> None:
        whole(1, steps=self.steps)

    def attach(self, f: Map, state: State, solve: Solve) -> Attached:
        return unroll(f, state, self.steps, 1.0, self.checkpoint, solve.wanted)


@dataclass(frozen=True)
class Phantom(Gradient):
    """Unroll `z ← (1 − λ) z + λ f(z)` from the solve's last proposal, with gradients.

    Approximates the implicit gradient near a solution, and stays a true gradient of a truncated computation far from
    one. The value is that of the last evaluation; its residual is measured by one evaluation more.

    Args:
        steps: tracked evaluations, at least 1.
        damping: `λ`, `0 < λ ≤ 1`.
        checkpoint: as of `Unrolled`.
    """

    steps: int = 5
    damping: float = 1.0
    checkpoint: bool = False
    begins_at: ClassVar = "proposal"

    @property
    def in_transforms(self) -> bool:
        return not self.checkpoint

    def __post_init__(self) -> None:
        share(damping=self.damping)
        whole(1, steps=self.steps)

    def attach(self, f: Map, state: State, solve: Solve) -> Attached:
        start = state if solve.proposal is None else solve.proposal
        return unroll(f, start, self.steps, self.damping, self.checkpoint)


def unroll(f: Map, z: State, steps: int, damping: float, checkpoint: bool, wanted: Collection[int] = ()) -> Attached:
    """`steps ≥ 1` damped evaluations from `z` with gradients on; keeps the iterates whose numbers are `wanted`."""
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
    if checkpoint and last is not None:
        verify(f, *last)
    return Attached(z, last, steps, first, iterates=iterates)
