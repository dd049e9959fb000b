"""Picard iteration, damped on request: `z ← (1 − β) z + β f(z)`."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from equilibria.solvers.base import Solver
from equilibria.solvers.point import Map, Point
from equilibria.solvers.residual import Groups
from equilibria.solvers.single import is_single, iterate_single
from equilibria.solvers.solution import Iterate
from equilibria.solvers.state import State


@dataclass(frozen=True, kw_only=True)
class Picard(Solver):
    """Plain iteration of the map. Converges where it contracts; nothing is cheaper per evaluation.

    Args:
        damping: the share `β` of the new value, `0 < β ≤ 1`; the residual is always that of the undamped map.
    """

    damping: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_damping(self.damping)

    def init(self, z: Tensor, groups: Groups) -> None:
        """Picard iteration remembers nothing."""

    def step(self, memory: None, point: Point, groups: Groups) -> tuple[Tensor, None]:
        """The damped average of the iterate and the map's value."""
        if self.damping == 1.0:
            return point.value, None
        return torch.lerp(point.z, point.value, self.damping), None

    def _solve(self, f: Map, z0: State, propose: bool, iterates: Collection[int]) -> Iterate:
        """The solve loop; of single tokens, where nothing is asked for on the way, a shorter one."""
        asked = propose or iterates or self.trace_groups or self.check_every > 1 or self.scope in ("sample", "all")
        if not asked and is_single(z0):
            found = iterate_single(self, f, z0)
            if found is not None:
                return found
        return super()._solve(f, z0, propose, iterates)


def check_damping(damping: float) -> None:
    """Raise ValueError unless `0 < damping <= 1`."""
    if not 0 < damping <= 1:
        raise ValueError(f"damping must be above 0 and at most 1, found {damping}")
