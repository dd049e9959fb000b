"""Picard iteration, damped on request: `z ← (1 − β) z + β f(z)`."""

from dataclasses import dataclass

import torch
from torch import Tensor

from equilibria.ranges import share
from equilibria.solvers.base import Solver
from equilibria.solvers.point import Point
from equilibria.solvers.residual import Groups


@dataclass(frozen=True, kw_only=True)
class Picard(Solver):
    """Plain iteration of the map. Converges where it contracts; nothing is cheaper per evaluation.

    Args:
        damping: the share `β` of the new value, `0 < β ≤ 1`; the residual is always that of the undamped map.
    """

    short = True

    damping: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        share(damping=self.damping)

    def init(self, z: Tensor, groups: Groups) -> None:
        """Nothing is remembered."""

    def step(self, memory: None, point: Point, groups: Groups) -> tuple[Tensor, None]:
        if self.damping == 1.0:
            return point.value, None
        return torch.lerp(point.z, point.value, self.damping), None
